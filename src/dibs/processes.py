"""The processes of a run on one machine: how work is shared, and how results come together.

``torchrun --nproc_per_node K -m dibs train CONFIG`` starts K processes. Each of them holds the whole
policy, draws and judges a share of a step's completions, and computes a share of every gradient. All of
them see all rollouts, so there is one allocation, and they make the same updates. The first process, the
main one, alone writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dibs.types import ElsewhereError, InputError

_Item = TypeVar("_Item")
_BUCKET = 2**24
"""Numbers added up at once (64 MiB of float32)."""


@dataclass(frozen=True)
class Processes:
    """This process, of ``rank`` among ``size``; methods return what they are given where it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def all_gather(self, mine: _Item) -> list[_Item]:
        """What every process gives, in order of rank."""
        if self.size == 1:
            return [mine]
        # Pickled, between processes of one run only.
        given: list[_Item | None] = [None] * self.size
        dist.all_gather_object(given, mine)
        return given  # type: ignore[return-value]

    def all_gather_results(self, work: Callable[[], _Item]) -> list[_Item]:
        """What ``work()`` returns in every process, in order of rank.

        Where it raises in one process, it raises in all of them, so that none waits for another: its own
        error there, ElsewhereError with the words of that error in the others.
        """
        if self.size == 1:
            return [work()]
        mine, error = _attempt(work)
        given = self.all_gather((mine, None if error is None else _in_words(error)))
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(given):
            if failure is not None:
                raise ElsewhereError(f"process {rank} failed: {failure}")
        return [each for each, _ in given]  # type: ignore[misc]

    def from_main(self, work: Callable[[], _Item]) -> _Item:
        """What ``work()`` returns in the main process, which alone does it.

        Where it raises, all processes raise: the main one its own error, the others ElsewhereError.
        """
        if self.size == 1:
            return work()
        value, error = _attempt(work) if self.main else (None, None)
        value, failure = self.broadcast((value, None if error is None else _in_words(error)))
        if error is not None:
            raise error
        if failure is not None:
            raise ElsewhereError(f"process 0 failed: {failure}")
        return value  # type: ignore[return-value]

    def any(self, mine: bool) -> bool:
        """Whether ``mine`` is true in any process."""
        return any(self.all_gather(mine))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The others wait until the main process has been through the block."""
        if not self.main:
            self.all_gather(None)
        yield
        if self.main:
            self.all_gather(None)

    def broadcast(self, value: _Item) -> _Item:
        """The value that the main process gives."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def require_same(self, mine: object, what: str) -> None:
        """RuntimeError where the processes, which must go in step, have different values of ``what``."""
        values = self.all_gather(mine)
        if any(value != values[0] for value in values[1:]):
            shown = ", ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
            raise RuntimeError(f"the processes have come apart: {what} differs ({shown})")

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over processes, in place; added in float32, rounded once.

        The tensors are joined to buckets, and each bucket is added at once. DistributedDataParallel
        would add gradients in hooks of the backward pass; that needs equally many micro-batches in
        every process, and here their number differs.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for i, tensor in enumerate(tensors):
            bucket.append(tensor)
            full = sum(each.numel() for each in bucket) >= _BUCKET
            if full or i == len(tensors) - 1:
                flat = torch.cat([each.flatten().float() for each in bucket])
                dist.all_reduce(flat)
                parts = flat.split([each.numel() for each in bucket])
                for each, part in zip(bucket, parts, strict=True):
                    each.copy_(part.view_as(each))
                bucket = []

    def own_share(self, items: Sequence[_Item], costs: Sequence[float]) -> list[_Item]:
        """The items of this process, in order; the shares of all processes cost nearly the same."""
        if self.size == 1:
            return list(items)
        order = sorted(range(len(items)), key=lambda i: (-costs[i], i))
        # There and back again: 0 1 2 2 1 0 0 1 2 ...
        there = list(range(self.size))
        turns = there + there[::-1]
        mine = [i for n, i in enumerate(order) if turns[n % len(turns)] == self.rank]
        return [items[i] for i in sorted(mine)]

    def own_stretch(self, items: Sequence[_Item], costs: Sequence[float]) -> list[_Item]:
        """The items of this process, one stretch of the line; the stretches cost nearly the same."""
        total, before, mine = sum(costs), 0.0, []
        for item, cost in zip(items, costs, strict=True):
            middle = (before + cost / 2) / total if total else 0.0
            if min(int(middle * self.size), self.size - 1) == self.rank:
                mine.append(item)
            before += cost
        return mine


ALONE = Processes()
"""The only process."""


def _attempt(work: Callable[[], _Item]) -> tuple[_Item | None, Exception | None]:
    """What ``work()`` returns, or the error that it raises, whatever that is."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def start_processes() -> Processes:
    """Join the processes that torchrun started; the only one where it was not torchrun.

    Raises InputError where there are not as many as torchrun said, or on more than one machine.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected == 1:
        return ALONE
    if int(os.environ.get("LOCAL_WORLD_SIZE", expected)) != expected:
        raise InputError(
            f"{expected} processes on several machines; DIBS trains on one, larger runs are for verl "
            "(docs/engines.md)"
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if Path("/sys/class/net/lo").exists():
        # They are on one machine: no port of theirs need be open to others.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size())
    ranks = processes.all_gather(processes.rank)
    if ranks != list(range(expected)):
        raise InputError(
            f"torchrun announced {expected} processes, and those of ranks {ranks} came"
        )
    return processes


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """:func:`start_processes`, and leave them at the end, well or not."""
    try:
        yield start_processes()
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
