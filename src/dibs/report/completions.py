"""The completions of runs as JSON inside an HTML page, within a limit of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dibs.files import to_json
from dibs.report.arms import Arm
from dibs.runs.read import Record, finite_number

BYTES = 3_200_000
"""Limit for all completions of a page together."""
TEXT = 12_000
"""Characters of a prompt or completion to show. A longer text loses its middle."""


@dataclass(frozen=True)
class Completions:
    """Completions for the page.

    ``json``: safe inside a script element. ``shown``: how many it holds. ``kept``: how many the run
    folders hold.
    """

    json: str
    shown: int
    kept: int


def pack_completions(arms: Sequence[Arm], limit: int = BYTES) -> Completions:
    """Pack the completions of all runs.

    If there are too many, each run loses the same share, and those shown are evenly spaced.
    """
    runs = [(arm.label, run) for arm in arms for run in arm.runs]
    labels = [
        f"{label}, seed {run.setting('seed')}" if run.config else f"{run.path}"
        for label, run in runs
    ]
    rows = [(i, record) for i, (_, run) in enumerate(runs) for record in run.samples]
    # JSON takes at least one byte for each character.
    least = sum(min(len(record["completion"]), TEXT) for _, record in rows)
    share = min(1.0, limit / max(least, 1))
    while True:
        picked = _evenly(len(rows), int(len(rows) * share))
        packed = _packed(labels, [rows[i] for i in picked])
        size = len(packed.encode("utf-8"))
        if size <= limit or not len(picked):
            return Completions(packed, len(picked), len(rows))
        share *= 0.95 * limit / size


def _packed(labels: Sequence[str], rows: Sequence[tuple[int, Record]]) -> str:
    prompts: dict[tuple[str, str, str], int] = {}
    columns = []
    for run, record in rows:
        prompt = tuple(_text(record.get(key)) for key in ("prompt_id", "prompt", "answer"))
        columns.append(
            [
                run,
                _json_number(finite_number(record, "step")),
                prompts.setdefault((prompt[0], prompt[1], prompt[2]), len(prompts)),
                _text(record["completion"]),
                _json_number(finite_number(record, "reward")),
                _text(record.get("status")),
                _json_number(finite_number(record, "accept_rate")),
                _json_number(finite_number(record, "count")),
            ]
        )
    found = {"runs": [_text(label) for label in labels], "prompts": [*prompts], "rows": columns}
    return in_script(to_json(found))


def in_script(json: str) -> str:
    """Escape the characters that could end a script element or begin a comment in it."""
    for character in "<>&":
        json = json.replace(character, f"\\u{ord(character):04x}")
    return json


def _text(value: Any) -> str:
    """Make text that any page can hold: replace lone surrogates, and cut the middle of long texts."""
    text = "" if value is None else str(value)
    if len(text) > TEXT:
        half = TEXT // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _json_number(value: float) -> float | int | None:
    if np.isnan(value):
        return None
    return int(value) if value == int(value) else round(value, 4)


def _evenly(count: int, most: int) -> list[int]:
    if most >= count:
        return list(range(count))
    return sorted(set(np.linspace(0, count - 1, max(most, 0)).round().astype(int).tolist()))
