"""Weighted completions in, optimizer updates out. Blind to algorithm, allocator, prompts and counts.

A step's completions are dealt to a fixed number of optimizer updates like cards: update u of U takes
every U-th completion. Each group is thereby spread over the updates, the number of updates does not
depend on the counts, and the loss of each update is scaled by U so that its expected gradient is the
whole step's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_scheduler

from dibs.config import UpdateConfig
from dibs.model.gradient_vector import Projection
from dibs.model.memory import with_smaller_batches
from dibs.model.policy import Policy
from dibs.processes import ALONE, Processes
from dibs.training.losses import PolicyLoss
from dibs.training.update_metrics import _MISMATCH, UpdateMetrics, _histogram, _Tally
from dibs.types import NonFiniteError, TrainingExample

_Result = TypeVar("_Result")


class Updater:
    """AdamW on a policy.

    ``reference``: the frozen policy of the KL penalty, needed when ``loss.beta`` > 0.
    ``total_updates``: length of the learning-rate schedule.
    """

    def __init__(
        self,
        policy: Policy,
        loss: PolicyLoss,
        config: UpdateConfig,
        total_updates: int,
        reference: Policy | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.policy = policy
        self.processes = processes
        self.loss = loss
        self.config = config
        self.reference = reference
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        for parameter in self.parameters:
            # AdamW passes over a parameter without a gradient, and so a resumed run would differ.
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.projection = Projection(self.parameters)
        self.skipped_in_a_row = 0
        self.micro_batch_tokens = config.micro_batch_tokens
        # Of transformers' schedules, "constant" alone ignores the warm-up.
        schedule = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        self.scheduler = get_scheduler(
            schedule, self.optimizer, config.warmup_updates, total_updates
        )

    def step(self, examples: Sequence[TrainingExample]) -> UpdateMetrics:
        """``updates_per_step`` optimizer updates on a step's completions.

        Updates happen also where there is nothing to learn, so that schedules and comparisons stay
        aligned: their gradient is 0, though AdamW's momentum may still move the weights. A gradient that
        is NaN or infinite is never applied: its update is skipped, and NonFiniteError raised after
        ``max_skipped`` in a row. Where memory does not suffice, micro-batches are halved; the result
        stays the same, rounding aside.
        """
        updates = self.config.updates_per_step
        hands = [examples[u::updates] for u in range(updates)]
        if self.loss.beta == 0:
            # A completion of advantage 0 has no gradient. It is dealt all the same: if hands depended on
            # what is learned from them, their spread would not tell the gradient's noise.
            hands = [[example for example in hand if example.advantage != 0] for hand in hands]
        hands = [self._share(hand) for hand in hands]
        # The first update moves away from the very weights that it is compared with.
        old = [None, *(self._behavior_logprobs(hand) for hand in hands[1:])]
        tally = _Tally()
        self.policy.model.train()
        for u, (hand, old_logprobs) in enumerate(zip(hands, old, strict=True)):
            try:
                self._update(hand, old_logprobs, scale=updates, tally=tally)
            except NonFiniteError as error:
                raise NonFiniteError(f"update {u + 1} of {updates}: {error}") from None
        tokens = max(tally.sums.get("tokens", 0.0), 1.0)
        square, variance = tally.noise()
        return UpdateMetrics(
            updates=updates,
            loss=tally.loss / updates,
            update_grad_norm=sum(tally.norms) / max(len(tally.norms), 1),
            skipped_updates=tally.skipped,
            clip_fraction=tally.sums.get("clipped_tokens", 0.0) / tokens,
            kl=tally.sums.get("kl", 0.0) / tokens,
            entropy=tally.sums.get("entropy", 0.0) / tokens,
            learning_rate=self.scheduler.get_last_lr()[0],
            gradient_square=square,
            gradient_variance=variance,
            **self._mismatch(tally.gaps),
        )

    def gradient(
        self,
        examples: Sequence[TrainingExample],
        old_logprobs: Sequence[Tensor] | None = None,
        scale: float = 1.0,
        gaps: list[Tensor] | None = None,
    ) -> tuple[float, dict[str, Tensor]]:
        """Add ``scale`` times the loss gradient to ``.grad``, micro-batch by micro-batch.

        Returns the scaled loss and the metric sums. The result does not depend on how the examples
        fall into micro-batches, rounding aside.

        Args:
            old_logprobs: before the step's first update, [T] each; None: the policy has not moved since.
            gaps: takes ``ln`` of learner's over sampler's probability of each token, [T] a completion.
        """
        total, sums = 0.0, dict[str, Tensor]()
        for indices in self.policy.micro_batches(examples, self.micro_batch_tokens):
            chosen = [examples[i] for i in indices]
            batch = self.policy.collate(chosen)
            ref = None
            if self.reference is not None:
                with torch.no_grad():
                    ref = self.reference.logprobs(batch)
            logprobs, entropy = self.policy.logprobs_and_entropy(batch)
            old = sampling = None
            if self.loss.needs_old_logprobs:
                old = logprobs.detach()
                if old_logprobs is not None:
                    old = pad_sequence([old_logprobs[i] for i in indices], batch_first=True)
                sampling = self._sampling_logprobs(chosen, old)
                if gaps is not None:
                    gaps += _rows(old - sampling, chosen)
            loss, parts = self.loss(
                logprobs,
                batch.completion_mask,
                self._column([e.advantage for e in chosen]),
                self._column([e.weight for e in chosen]),
                old,
                ref,
                sampling,
            )
            parts["entropy"] = entropy.sum()
            (loss * scale).backward()
            total += float(loss.detach()) * scale
            for name, value in parts.items():
                sums[name] = sums[name] + value if name in sums else value
        return total, sums

    def _update(
        self,
        examples: Sequence[TrainingExample],
        old_logprobs: Sequence[Tensor] | None,
        scale: float,
        tally: _Tally,
    ) -> None:
        loss, sums, gaps = self._fitting(
            examples, lambda: self._fresh(examples, old_logprobs, scale)
        )
        loss, sums = self._of_all(loss, sums)
        vector = self.projection() if self.config.updates_per_step > 1 else None
        limit = self.config.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skip(f"the loss is {loss}, the gradient norm {norm}", tally)
            return
        self.skipped_in_a_row = 0
        self.optimizer.step()
        self.scheduler.step()
        tally.add(loss, sums)
        tally.gaps += gaps
        tally.norms.append(norm)
        if vector is not None:
            tally.add_gradient(vector)

    def _fresh(
        self,
        examples: Sequence[TrainingExample],
        old_logprobs: Sequence[Tensor] | None,
        scale: float,
    ) -> tuple[float, dict[str, Tensor], list[Tensor]]:
        self.optimizer.zero_grad(set_to_none=False)
        gaps: list[Tensor] = []
        return *self.gradient(examples, old_logprobs, scale, gaps), gaps

    def _skip(self, why: str, tally: _Tally) -> None:
        """Make no update of a gradient that is NaN or infinite; too many in a row end the run."""
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.max_skipped:
            raise NonFiniteError(
                f"{why}, after {self.skipped_in_a_row - 1} skipped updates in a row"
            )
        tally.skipped += 1
        self.optimizer.zero_grad(set_to_none=False)

    def _fitting(self, examples: Sequence[TrainingExample], run: Callable[[], _Result]) -> _Result:
        """Run in micro-batches that fit into memory; smaller ones stay for the rest of the run."""

        def with_tokens(tokens: int) -> _Result:
            self.micro_batch_tokens = tokens
            return run()

        lengths = [len(e.context_ids) + len(e.completion_ids) for e in examples]
        longest = max(lengths, default=self.micro_batch_tokens)
        result, self.micro_batch_tokens = with_smaller_batches(
            with_tokens, self.micro_batch_tokens, longest
        )
        return result

    def _behavior_logprobs(self, examples: Sequence[TrainingExample]) -> list[Tensor] | None:
        """``log pi`` before the step's first update, one a completion; None if the loss has no use."""
        if not self.loss.needs_old_logprobs:
            return None
        self.policy.model.train()
        return self._fitting(examples, lambda: self._logprobs(examples))

    def _logprobs(self, examples: Sequence[TrainingExample]) -> list[Tensor]:
        logprobs: dict[int, Tensor] = {}
        with torch.no_grad():
            for indices in self.policy.micro_batches(examples, self.micro_batch_tokens):
                batch = self.policy.collate([examples[i] for i in indices])
                for i, row in zip(indices, self.policy.logprobs(batch), strict=True):
                    logprobs[i] = row[: max(len(examples[i].completion_ids), 1)]
        return [logprobs[i] for i in range(len(examples))]

    def _share(self, hand: Sequence[TrainingExample]) -> Sequence[TrainingExample]:
        """This process's part of an update's completions."""
        return self.processes.own_share(
            hand, [len(e.context_ids) + len(e.completion_ids) for e in hand]
        )

    def _of_all(self, loss: float, sums: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Add up gradients, losses and sums of all processes; the gradients in place."""
        if self.processes.size == 1:
            return loss, sums
        self.processes.all_reduce_sum([p.grad for p in self.parameters if p.grad is not None])
        parts = self.processes.all_gather((loss, {name: float(v) for name, v in sums.items()}))
        names = {name for _, each in parts for name in each}
        added = {
            name: torch.tensor(sum(each.get(name, 0.0) for _, each in parts)) for name in names
        }
        return sum(each for each, _ in parts), added

    def _mismatch(self, own: Sequence[Tensor]) -> dict[str, Any]:
        """How far the sampler's log-probabilities are from the learner's, over all processes."""
        if not self.loss.needs_old_logprobs:
            return dict.fromkeys(_MISMATCH)
        mine = [gap.cpu().double().numpy() for gap in own]
        gaps = [gap for part in self.processes.all_gather(mine) for gap in part]
        if not gaps:
            return dict.fromkeys(_MISMATCH)
        tokens = np.concatenate(gaps)
        return {
            "sampler_gap": float(np.abs(tokens).mean()),
            "sampler_gap_max": float(np.abs(tokens).max()),
            "token_ratios": _histogram(tokens),
            "sequence_ratios": _histogram(np.array([gap.sum() for gap in gaps])),
        }

    def _sampling_logprobs(self, examples: Sequence[TrainingExample], otherwise: Tensor) -> Tensor:
        """The sampler's log-probabilities, padded as ``otherwise`` [B, T], which stands in for none."""
        padded = otherwise.clone()
        for row, example in zip(padded, examples, strict=True):
            known = example.sampling_logprobs
            row[: len(known)] = torch.tensor(known, device=row.device)
        return padded

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.policy.device)


def _rows(values: Tensor, examples: Sequence[TrainingExample]) -> list[Tensor]:
    """The tokens of each completion that has any, out of padded rows [B, T]."""
    lengths = [len(example.completion_ids) for example in examples]
    return [row[:length] for row, length in zip(values, lengths, strict=True) if length]
