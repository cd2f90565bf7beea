"""Continue with smaller batches where memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory of the device or of the machine is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "out of memory" in text.lower()
    )


def halved(tokens: int, longest: int) -> int:
    """Half of ``tokens``, but at least ``longest``; unused memory is returned to the device.

    Call it outside of the error's handler: the traceback holds the tensors that did not fit.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(tokens // 2, longest)


def with_smaller_batches(
    run: Callable[[int], _Result], tokens: int, longest: int
) -> tuple[_Result, int]:
    """Call ``run(tokens)``, and again with half as many tokens whenever memory does not suffice.

    Args:
        run: does all of its work, in batches of so many tokens.
        tokens: tokens of a batch in the first call.
        longest: tokens of the longest sequence; smaller batches are not tried.

    Returns:
        The result of the call that succeeded, and its tokens.

    Raises whatever ``run`` raises, and its out-of-memory error where one sequence alone is too large.
    """
    while True:
        try:
            return run(tokens), tokens
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or tokens <= longest:
                raise
        tokens = halved(tokens, longest)
