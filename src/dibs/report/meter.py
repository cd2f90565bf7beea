"""The result of ``dibs variance`` for people: a table and what it means."""

from __future__ import annotations
