"""The processes of a run on one machine: who draws what, and how gradients are added up.

``torchrun --nproc_per_node K -m dibs train CONFIG`` starts K of them. Each holds the whole policy, draws
and judges its share of a step's completions, and computes its share of every gradient; all of them see
all rollouts, so that there is one allocation, and make the same updates. The first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dibs.types import InputError

_Item = TypeVar("_Item")
_BUCKET = 2**24
"""Numbers added up at once (64 MiB of float32)."""


@dataclass(frozen=True)
class Processes:
    """This process among ``size``; everything here is a plain identity where it is the only one."""

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
        """What ``work()`` gives in every process.

        Raises in all of them where it fails in one, so that none waits for it: there its own error,
        elsewhere RuntimeError with its words.
        """
        if self.size == 1:
            return [work()]
        mine: _Item | None = None
        error: Exception | None = None
        try:
            mine = work()
        except Exception as caught:  # whatever it is, the others are to be told
            error = caught
        failure = None if error is None else f"{type(error).__name__}: {error}"
        told = self.all_gather((mine, failure))
        if error is not None:
            raise error
        for rank, (_, failed) in enumerate(told):
            if failed is not None:
                raise RuntimeError(f"process {rank} failed: {failed}")
        return [given for given, _ in told]  # type: ignore[misc]

    def any(self, mine: bool) -> bool:
        """Whether any process says so."""
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
        """What the main process says."""
        return self.all_gather(value)[0]

    def require_same(self, mine: object, what: str) -> None:
        """RuntimeError where processes that must go in step have come apart."""
        values = self.all_gather(mine)
        if any(value != values[0] for value in values[1:]):
            shown = ", ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
            raise RuntimeError(f"the processes have come apart: {what} differs ({shown})")

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over processes; float32, in place.

        Buckets of them are added at once. What DistributedDataParallel would do in its hooks is done
        here after the last micro-batch: those are ragged, and their number differs between processes.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for i, tensor in enumerate(tensors):
            bucket.append(tensor)
            full = sum(each.numel() for each in bucket) >= _BUCKET
            if full or i == len(tensors) - 1:
                flat = torch.cat([each.flatten() for each in bucket])
                dist.all_reduce(flat)
                parts = flat.split([each.numel() for each in bucket])
                for each, part in zip(bucket, parts, strict=True):
                    each.copy_(part.view_as(each))
                bucket = []

    def own_share(self, items: Sequence[_Item], costs: Sequence[float]) -> list[_Item]:
        """This process's items: dealt in turn, dearest first, so that shares cost nearly the same."""
        if self.size == 1:
            return list(items)
        order = sorted(range(len(items)), key=lambda i: (-costs[i], i))
        # There and back again: 0 1 2 2 1 0 0 1 2 ...
        there = list(range(self.size))
        turns = there + there[::-1]
        mine = [i for n, i in enumerate(order) if turns[n % len(turns)] == self.rank]
        return [items[i] for i in sorted(mine)]


ALONE = Processes()
"""The only process."""


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
