"""Going on with smaller batches where memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the device or of the machine, is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "out of memory" in text.lower()
    )


def halved(tokens: int, longest: int) -> int:
    """Half as many tokens a batch, one sequence at least; memory that is not in use is given back.

    To be called outside the handler of the error, whose traceback holds the tensors that did not fit.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(tokens // 2, longest)


def with_smaller_batches(
    run: Callable[[int], _Result], tokens: int, longest: int
) -> tuple[_Result, int]:
    """``run(tokens)``, with half as many tokens a batch as often as memory does not suffice.

    Args:
        run: does all of its work again, in batches of so many tokens.
        tokens: of a batch, to begin with.
        longest: of one sequence; with fewer tokens a batch nothing could get smaller.

    Returns:
        The result, and the tokens at which it was reached.

    Raises whatever ``run`` does, and its out-of-memory error where one sequence alone is too large.
    """
    while True:
        try:
            return run(tokens), tokens
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or tokens <= longest:
                raise
        tokens = halved(tokens, longest)
