"""Sampling with the model that is trained: a decoding loop around its forward pass.

Unlike ``generate``, the loop reads the prompt of a group once and gives the places of finished rows to
waiting ones. It draws from the softmax alone and ignores the model's generation settings (top-k, top-p,
penalties). A row has its own random numbers, so its tokens do not depend on its neighbors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dibs.model.forward_pass import in_evaluation_mode
from dibs.model.memory import halved, out_of_memory
from dibs.model.policy import Policy
from dibs.model.turn_end import decoded
from dibs.rollouts.sampling.annealing import Annealing
from dibs.rollouts.sampling.cache import continued, join_rows, leading, new_cache, select_rows
from dibs.rollouts.sampling.prompt_cache import PromptCache
from dibs.rollouts.sampling.sampler import Sampled, SampleRequest, as_completion
from dibs.types import Completion

_FREE_SHARE = 4
"""Rows are admitted when 1 place in this many is free, since each admission copies the cache."""
_FINISHED_SHARE = 8
"""Finished rows are dropped when 1 row in this many has finished, since that copies the cache too."""
_ROWS_A_PROMPT = 2
"""Prompts are held once where they have this many rows in the mean; with fewer that saves nothing."""
_BLOCK = 2**24
"""Probabilities held at once while tokens are drawn."""


@dataclass(frozen=True)
class _Row:
    """A completion to be written."""

    request: int
    number: int
    prompt: tuple[int, ...]
    seed: tuple[int, ...]

    def uniforms(self, length: int) -> np.ndarray:
        """The random numbers in [0, 1) that its tokens are drawn with, float64 [length]."""
        return np.random.default_rng([*self.seed, self.number]).random(length)


class TransformersSampler:
    """Decodes rows together: so many that prompts and longest completions fit in ``batch_tokens``."""

    context: int | None = None
    shared = False
    description = "the model that is trained"

    def __init__(
        self,
        policy: Policy,
        max_completion_length: int,
        batch_tokens: int,
        annealing: Annealing | None = None,
    ) -> None:
        self.policy = policy
        self.annealing = annealing
        self.max_completion_length = max_completion_length
        self.batch_tokens = batch_tokens

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """See :class:`.Sampler`."""
        rows = [
            _Row(i, request.first + k, request.prompt.token_ids, request.seed)
            for i, request in enumerate(requests)
            for k in range(request.count)
        ]
        # Longest first, so that the largest batch comes at once; rows of a prompt stay together.
        rows.sort(key=lambda row: -len(row.prompt))
        longest = max((len(row.prompt) for row in rows), default=0) + self.max_completion_length
        prompts = len({row.prompt for row in rows})
        holds_prompts = self.policy.holds_prompts and len(rows) >= _ROWS_A_PROMPT * prompts
        drawing = _Drawing(self, temperature, holds_prompts=holds_prompts)
        while rows:
            done: set[_Row] = set()
            try:
                for row, completion in self._decoded(rows, drawing):
                    done.add(row)
                    yield Sampled(row.request, row.number, completion)
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.batch_tokens <= longest:
                    raise
            # Smaller batches stay for the rest of the run.
            self.batch_tokens = halved(self.batch_tokens, longest)
            rows = [row for row in rows if row not in done]

    def update_weights(self) -> None:
        """Nothing to do, since the sampler uses the policy's own weights."""

    def close(self) -> None:
        """Nothing to stop."""

    def _decoded(
        self, rows: Sequence[_Row], drawing: _Drawing
    ) -> Iterator[tuple[_Row, Completion]]:
        """Yield each row with its completion as it is finished."""
        waiting = deque(rows)
        batch: _Batch | None = None
        with in_evaluation_mode(self.policy.model):
            while waiting or batch is not None:
                if batch is not None:
                    batch.advance()
                    yield from batch.harvest()
                    batch = batch.without_finished()
                admitted = self._admitted(waiting, batch)
                if admitted:
                    fresh = _Batch(drawing, admitted)
                    yield from fresh.harvest()
                    rest = fresh.without_finished()
                    if rest is not None:
                        batch = rest if batch is None else batch.joined(rest)

    def _admitted(self, waiting: deque[_Row], batch: _Batch | None) -> list[_Row]:
        """Take the waiting rows for which there is a place now."""
        if not waiting or (batch is not None and not batch.flexible):
            return []
        going = [] if batch is None else batch.unfinished
        widest = max(len(row.prompt) for row in (waiting[0], *going))
        places = max(1, self.batch_tokens // (widest + self.max_completion_length))
        free = places - len(going)
        if free <= 0 or free < min(len(waiting), places // _FREE_SHARE):
            return []
        return [waiting.popleft() for _ in range(min(free, len(waiting)))]


class _Drawing:
    """Draws tokens: the inverse CDF of the softmax at a row's own uniform numbers.

    ``temperature`` None: the policy's, or what the sampler's annealing makes of it. ``holds_prompts``:
    whether batches hold keys and values of a prompt once for all its rows.
    """

    def __init__(
        self, sampler: TransformersSampler, temperature: float | None, *, holds_prompts: bool
    ) -> None:
        self.policy = sampler.policy
        self.holds_prompts = holds_prompts
        self.length = sampler.max_completion_length
        self.annealing = sampler.annealing if temperature is None else None
        self.temperature = self.policy.temperature if temperature is None else temperature
        self.end_ids = self.policy.eos_ids
        self.ends = torch.tensor(self.end_ids, device=self.policy.device)

    def tokens(self, logits: Tensor, uniforms: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's token and its log-probability, [B] each.

        Args:
            logits: [B, V]. uniforms: [B]. places: of the tokens in their completions, [B].
        """
        if self.annealing is not None:
            logits = logits.float() / self.annealing.at(places).unsqueeze(1)
        size = max(1, _BLOCK // logits.shape[1])
        drawn = [
            self._tokens(*each)
            for each in zip(logits.split(size), uniforms.split(size), strict=True)
        ]
        tokens, logprobs = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return tokens, logprobs

    def _tokens(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = (logits.float() / self.temperature).log_softmax(-1)
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        drawn = uniforms.unsqueeze(-1) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, drawn, right=True)
        token = token.clamp(max=logits.shape[-1] - 1)
        return token.squeeze(-1), logprobs.gather(-1, token).squeeze(-1)


class _Batch:
    """Rows that are decoded together.

    ``mask``: bool [B, L], true where a row has a token in ``cache``. ``prompts``: what rows go on from,
    None where ``cache`` begins with their prompts. ``positions``: position of each row's last
    token, [B]; the model has not read that token yet. ``tokens`` and ``logprobs``: [B, length], of
    which the first ``written`` [B] are valid. ``left``: whether each row was harvested and waits to be
    dropped.
    """

    def __init__(self, drawing: _Drawing, rows: Sequence[_Row]) -> None:
        self.drawing = drawing
        self.rows = list(rows)
        policy = drawing.policy
        self.cache, self.flexible = new_cache(policy.model)
        self.prompts: PromptCache | None = None
        # A prompt of several rows is read once.
        prompts = list(dict.fromkeys(row.prompt for row in rows)) if self.flexible else None
        place = {prompt: i for i, prompt in enumerate(prompts or ())}
        shown = [row.prompt for row in rows] if prompts is None else prompts
        ids = [torch.tensor(prompt) for prompt in shown]
        lengths = torch.tensor([len(prompt) for prompt in shown], device=policy.device)
        padded = pad_sequence(
            ids, batch_first=True, padding_value=policy.pad_id, padding_side="left"
        ).to(policy.device)
        columns = torch.arange(padded.shape[1], device=policy.device)
        self.mask = columns >= padded.shape[1] - lengths.unsqueeze(1)
        logits = self._logits(padded, (self.mask.long().cumsum(-1) - 1).clamp(min=0))
        self.positions = lengths - 1
        holds_prompts = self.flexible and drawing.holds_prompts
        if holds_prompts or len(shown) < len(rows):
            repeats = torch.tensor([place[row.prompt] for row in rows], device=policy.device)
            self.positions, logits = self.positions[repeats], logits[repeats]
            if holds_prompts:
                self.prompts = PromptCache(self.cache, self.mask, repeats)
                self.cache, self.mask = self.prompts.empty_cache(), self.mask[repeats, :0]
            else:
                select_rows(self.cache, repeats)
                self.mask = self.mask[repeats]
        size = (len(rows), drawing.length)
        self.uniforms = torch.from_numpy(np.stack([row.uniforms(drawing.length) for row in rows]))
        self.uniforms = self.uniforms.to(policy.device)
        self.tokens = torch.zeros(size, dtype=torch.long, device=policy.device)
        self.logprobs = torch.zeros(size, device=policy.device)
        self.written = torch.zeros(len(rows), dtype=torch.long, device=policy.device)
        self.ended = torch.zeros(len(rows), dtype=torch.bool, device=policy.device)
        self.left = [False] * len(rows)
        self._write(logits)

    @property
    def unfinished(self) -> list[_Row]:
        """Rows that are still being written."""
        return [row for row, left in zip(self.rows, self.left, strict=True) if not left]

    def advance(self) -> None:
        """Draw one more token for every row."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        last = self.tokens.gather(1, (self.written - 1).unsqueeze(1))
        self._write(self._logits(last, self.positions.unsqueeze(1)))

    def harvest(self) -> Iterator[tuple[_Row, Completion]]:
        """Yield the rows that ended with the last token, each with its completion."""
        ended = [i for i, end in enumerate(self.ended.tolist()) if end and not self.left[i]]
        if not ended:
            return
        index = torch.tensor(ended, device=self.ended.device)
        tokens, logprobs = self.tokens[index].tolist(), self.logprobs[index]
        lengths = self.written[index].tolist()
        for i, ids, values, length in zip(ended, tokens, logprobs.tolist(), lengths, strict=True):
            self.left[i] = True
            drawn = ids[:length], values[:length]
            yield self.rows[i], as_completion(self.drawing.policy, *drawn, self.drawing.end_ids)

    def without_finished(self) -> _Batch | None:
        """The batch, without finished rows where dropping them pays; None where all have finished."""
        finished = sum(self.left)
        if finished == len(self.rows):
            return None
        if self.flexible and finished * _FINISHED_SHARE >= len(self.rows):
            self._drop_finished()
        return self

    def joined(self, other: _Batch) -> _Batch:
        """This batch with the rows of another; neither has only finished rows."""
        for batch in (self, other):
            if any(batch.left):
                batch._drop_finished()
        join_rows(self.cache, other.cache)
        if self.prompts is not None and other.prompts is not None:
            self.prompts.join(other.prompts)
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat(
            [
                torch.nn.functional.pad(batch.mask, (width - batch.mask.shape[1], 0))
                for batch in (self, other)
            ]
        )
        for name in _STATE:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.rows += other.rows
        self.left += other.left
        return self

    def _drop_finished(self) -> None:
        kept = [i for i, left in enumerate(self.left) if not left]
        index = torch.tensor(kept, dtype=torch.long, device=self.mask.device)
        self.mask = self.mask[index]
        lead = leading(self.mask)
        self.mask = self.mask[:, lead:]
        select_rows(self.cache, index, lead)
        if self.prompts is not None:
            self.prompts.select(index)
        for name in _STATE:
            setattr(self, name, getattr(self, name)[index])
        self.rows = [self.rows[i] for i in kept]
        self.left = [False] * len(kept)

    @torch.no_grad()
    def _logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        policy = self.drawing.policy
        with policy.autocast():
            logits: Tensor = policy.model(
                input_ids=ids,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **continued(policy.base_model, self.cache, self.mask, ids.shape[1], self.prompts),
            ).logits
        return logits[:, -1]

    @torch.no_grad()
    def _write(self, logits: Tensor) -> None:
        """Draw the next token of every row; rows that have ended do not change."""
        place = self.written.clamp(max=self.drawing.length - 1).unsqueeze(1)
        uniforms = self.uniforms.gather(1, place).squeeze(1)
        token, logprob = self.drawing.tokens(logits, uniforms, place.squeeze(1))
        # Tokens after the end of a finished row are never read.
        self.tokens.scatter_(1, place, token.unsqueeze(1))
        self.logprobs.scatter_(1, place, logprob.unsqueeze(1))
        going = ~self.ended
        self.written += going
        self.positions += going
        self.ended |= torch.isin(token, self.drawing.ends) | (self.written == self.drawing.length)
        if self.drawing.policy.stops.texts:
            self.ended |= self._stopped()

    def _stopped(self) -> Tensor:
        """Whether the last tokens of each row hold a text that ends a completion, bool [B]."""
        policy, ended = self.drawing.policy, self.ended.tolist()
        stopped = []
        for row, length, over in zip(self.tokens, self.written.tolist(), ended, strict=True):
            last = row[max(0, length - policy.stops.longest) : length]
            text = "" if over else decoded(policy.tokenizer, last.tolist())
            stopped.append(policy.stops.found_in(text) is not None)
        return torch.tensor(stopped, device=self.ended.device)


_STATE = ("positions", "uniforms", "tokens", "logprobs", "written", "ended")
