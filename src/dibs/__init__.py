"""DIBS: how many completions each prompt deserves."""

from dibs.allocation.allocators import allocate, allocator
from dibs.types import InputError

__version__ = "0.1.0"
__all__ = ["InputError", "allocate", "allocator"]
