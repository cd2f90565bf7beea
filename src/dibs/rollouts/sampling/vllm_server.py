"""Sampling from vLLM servers that the user has started.

A request is a part of a prompt's group, and it goes to the least busy server. A server that fails is
left out until it loads the next weights, and its requests go to the others. When no server is left the
run ends. Before samples are drawn, every server must confirm that it holds the weights it was sent,
since one that crashed and was restarted holds those it was started with.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from dibs.config import SamplingConfig
from dibs.model.policy import Policy
from dibs.rollouts.sampling.parity import ParityCheck
from dibs.rollouts.sampling.sampler import Sampled, SampleRequest, as_completion, engine_seed
from dibs.rollouts.sampling.vllm_client import FaultyServerError, Server
from dibs.types import InputError

_PART = 8
"""Completions of one HTTP request, whose answer comes when the last of them is finished."""
_ADVICE = (
    "start the server with the policy's --dtype and --logprobs-mode processed_logprobs, or set "
    "sampling.parity_tolerance to the difference that you accept"
)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Job:
    """Completions ``first`` to ``first + count - 1`` of a request's prompt, in one HTTP request."""

    request: int
    first: int
    count: int
    body: dict[str, Any]


@dataclass
class _Pool:
    """The servers and how busy they are. Its methods run in the event loop."""

    concurrency: int
    servers: list[Server] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    busy: dict[str, int] = field(default_factory=dict)

    @property
    def alive(self) -> list[Server]:
        return [server for server in self.servers if server.fault is None]

    async def verify(self) -> None:
        """Leave out servers that no longer hold the weights they were sent."""
        alive = self.alive
        faults = await asyncio.gather(*(_fault_of(server.verify()) for server in alive))
        for server, fault in zip(alive, faults, strict=True):
            server.fault = fault

    async def run(self, job: _Job) -> dict[str, Any]:
        """A server's answer to a job. Raises InputError where no server is left."""
        while True:
            server = await self._free()
            try:
                return await server.complete(job.body)
            except FaultyServerError as fault:
                server.fault = server.fault or str(fault)
            finally:
                async with self.changed:
                    self.busy[server.address] -= 1
                    if server.fault is None:
                        self.changed.notify()
                    else:
                        self.changed.notify_all()

    async def _free(self) -> Server:
        async with self.changed:
            await self.changed.wait_for(lambda: not self.alive or self._least_busy() is not None)
            server = self._least_busy()
            if server is None:
                raise nobody_left(self.servers)
            self.busy[server.address] = self.busy.get(server.address, 0) + 1
            return server

    def _least_busy(self) -> Server | None:
        """The least busy server, or None where none has room for a request."""
        free = [s for s in self.alive if self.busy.get(s.address, 0) < self.concurrency]
        return min(free, key=lambda s: self.busy.get(s.address, 0), default=None)


class VllmServerSampler:
    """Servers that hold the policy's weights. ``batch_tokens`` has no effect: they fill own batches."""

    shared = True

    def __init__(self, policy: Policy, config: SamplingConfig) -> None:
        self.policy = policy
        self.config = config
        self.batch_tokens = config.batch_tokens
        self._parity = ParityCheck(policy, config)
        self._run = uuid.uuid4().hex
        self._updates = 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="vllm_server", daemon=True)
        self._thread.start()
        self._servers = [
            Server(address, config.server_model, config.server_timeout)
            for address in config.servers
        ]
        self._pool = _Pool(config.server_concurrency, self._servers)
        try:
            self._wait(self._connect())
            lengths = [s.max_model_len for s in self._servers if s.max_model_len is not None]
            self.context = min(lengths, default=None)
            self.update_weights()
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> str:
        """See :class:`.Sampler`."""
        addresses = ", ".join(server.address for server in self._servers)
        checked = self._parity.difference
        return (
            f"vLLM at {addresses}, model {self._servers[0].model}, context of {self.context} tokens, "
            + ("not compared with the learner" if checked is None else "log-probabilities ")
            + ("" if checked is None else f"within {checked:.1g} of the learner's")
        )

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """See :class:`.Sampler`. Raises InputError when no server is left."""
        yield from self._drawn(self._pool, requests, self.config.max_completion_length, temperature)

    def update_weights(self) -> None:
        """Write the policy to a folder that the servers read, let all of them load it, and check parity.

        A server that cannot load the weights is left out. A server that was left out is used again once
        it loads them. Raises InputError where no server is left, or one does not sample from the
        policy.
        """
        self._updates += 1
        version = f"{self._run}-{self._updates}"
        with _folder_for_weights(self.config.sync_dir) as folder:
            self.policy.save_merged(folder)
            self._wait(self._updated(str(folder.absolute()), version))
        for server in self._pool.alive:
            alone = _Pool(self.config.server_concurrency, [server])
            try:
                self._parity(
                    f"the vLLM server {server.address}", partial(self._drawn, alone), _ADVICE
                )
            except InputError:
                if server.fault is None:
                    raise
        if not self._pool.alive:
            raise nobody_left(self._servers)

    def close(self) -> None:
        """Close connections; the servers keep running."""
        if self._loop.is_closed():
            return
        self._wait(_closed(self._servers))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _drawn(
        self,
        pool: _Pool,
        requests: Sequence[SampleRequest],
        length: int,
        temperature: float | None = None,
    ) -> Iterator[Sampled]:
        options = self._options(length, temperature)
        jobs = [
            _Job(
                i,
                request.first + part,
                min(_PART, request.count - part),
                {
                    **options,
                    "prompt": list(request.prompt.token_ids),
                    "n": min(_PART, request.count - part),
                    "seed": engine_seed(request, part),
                },
            )
            for i, request in enumerate(requests)
            for part in range(0, request.count, _PART)
        ]
        answers: SimpleQueue[tuple[_Job, dict[str, Any]] | None] = SimpleQueue()
        sending = self._begin(_all_sent(pool, jobs, lambda *answer: answers.put(answer)))
        sending.add_done_callback(lambda _: answers.put(None))
        try:
            while (answer := answers.get()) is not None:
                yield from self._sampled(*answer)
            sending.result()
        finally:
            sending.cancel()  # the caller stopped early: closed connections stop the servers' work

    def _options(self, length: int, temperature: float | None) -> dict[str, Any]:
        """Options of a request; all that affect sampling are given, so that no server's defaults do."""
        return {
            "temperature": self.policy.temperature if temperature is None else temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": length,
            "stop_token_ids": self.policy.eos_ids,
            "ignore_eos": True,  # only stop_token_ids end a completion
            "logprobs": 0,  # of the drawn token alone
            "return_token_ids": True,
            # A server would write on after a text that ends a completion, only to be cut here.
            **({"stop": list(texts)} if (texts := self.policy.stops.texts) else {}),
        }

    def _sampled(self, job: _Job, answer: dict[str, Any]) -> Iterator[Sampled]:
        """The completions in an answer, which may be fewer than were requested."""
        for choice in answer["choices"]:
            if choice["finish_reason"] not in ("stop", "length") or not choice["token_ids"]:
                continue
            logprobs = choice["logprobs"]["token_logprobs"]
            completion = as_completion(self.policy, choice["token_ids"], logprobs)
            yield Sampled(job.request, job.first + int(choice["index"]), completion)

    async def _connect(self) -> None:
        """Check all servers. Raises InputError where one cannot be used at the start."""
        faults = await asyncio.gather(*(_fault_of(server.check()) for server in self._servers))
        for server, fault in zip(self._servers, faults, strict=True):
            if fault is not None:
                raise InputError(f"sampling.servers {server.address}: {fault}")

    async def _updated(self, folder: str, version: str) -> None:
        async def update(server: Server) -> None:
            if server.fault is not None:
                await server.check()
            await server.load(folder, version)

        faults = await asyncio.gather(*(_fault_of(update(server)) for server in self._servers))
        for server, fault in zip(self._servers, faults, strict=True):
            server.fault = fault

    def _begin(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self._begin(work).result()


async def _all_sent(
    pool: _Pool, jobs: Sequence[_Job], deliver: Callable[[_Job, dict[str, Any]], None]
) -> None:
    """Send all jobs and deliver each answer as it comes. Raises InputError where no server is left."""

    async def send(job: _Job) -> None:
        deliver(job, await pool.run(job))

    await pool.verify()
    tasks = [asyncio.create_task(send(job)) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def nobody_left(servers: Sequence[Server]) -> InputError:
    """The error that ends a run: why each server cannot be used."""
    reasons = "; ".join(f"{server.address}: {server.fault}" for server in servers)
    return InputError(f"sampling.engine vllm_server: no server is left: {reasons}")


async def _closed(servers: Sequence[Server]) -> None:
    await asyncio.gather(*(server.close() for server in servers))


async def _fault_of(work: Coroutine[Any, Any, None]) -> str | None:
    try:
        await work
    except FaultyServerError as fault:
        return str(fault)
    return None


@contextmanager
def _folder_for_weights(parent: Path | None) -> Iterator[Path]:
    """A folder that exists while servers read it. Raises InputError where it cannot be made."""
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dibs-weights-", dir=parent) as name:
            Path(name).chmod(0o755)  # the servers may be another user's
            yield Path(name)
    except OSError as error:
        raise InputError(
            f"sampling.sync_dir {parent or tempfile.gettempdir()}: cannot write new weights: "
            f"{error.strerror or error}"
        ) from None
