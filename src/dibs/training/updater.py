"""Weighted completions in, optimizer updates out. Blind to algorithm, allocator and counts.

The completions of a step are dealt to a fixed number of optimizer updates, each group as evenly as whole
completions can be (``dealing``). The number of updates does not depend on the counts. The loss of each
update is scaled by U, so that its expected gradient is that of the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import get_scheduler

from dibs.config import UpdateConfig
from dibs.model.batching import TokenBatch
from dibs.model.grad_norms import weighted_backward
from dibs.model.gradient_vector import Projection
from dibs.model.memory import with_smaller_batches
from dibs.model.policy import Batch, Policy
from dibs.processes import ALONE, Processes
from dibs.training.dealing import deal, own_share
from dibs.training.dropout import dropout_masks, set_update_mode
from dibs.training.example_rows import lengths, padded_sampling_logprobs, slope
from dibs.training.losses import PolicyLoss
from dibs.training.norm_sample import NormSample, choose_measured
from dibs.training.old_logprobs import SAMPLERS, OldLogprobs, log_ratio_rows, sampler_agrees
from dibs.training.update_metrics import LossGradient, SamplerMismatch, UpdateMetrics, UpdateTally
from dibs.types import NonFiniteError, TrainingExample

_Result = TypeVar("_Result")


class Updater:
    """AdamW on a policy.

    ``reference``: the frozen policy of the KL penalty, needed when ``loss.beta`` > 0.
    ``total_updates``: length of the learning-rate schedule. ``seed``: of dropout masks,
    and of how completions are dealt to updates.
    """

    def __init__(
        self,
        policy: Policy,
        loss: PolicyLoss,
        config: UpdateConfig,
        total_updates: int,
        reference: Policy | None = None,
        processes: Processes = ALONE,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.processes = processes
        self.seed = seed
        self.loss = loss
        self.config = config
        self.reference = reference
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        for parameter in self.parameters:
            # AdamW passes over a parameter without a gradient, and so a resumed run would differ.
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.projection = Projection(self.parameters)
        self.skipped_in_a_row = 0
        self.micro_batch_tokens = config.micro_batch_tokens
        # Of transformers' schedules, "constant" alone ignores the warm-up.
        schedule = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        self.scheduler = get_scheduler(
            schedule, self.optimizer, config.warmup_updates, total_updates
        )

    def state_dict(self) -> dict[str, Any]:
        """The state of optimizer and schedule, and the size of micro-batches that fits into memory."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
            "micro_batch_tokens": self.micro_batch_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; learning rate and weight decay stay as the configuration has them."""
        self.optimizer.load_state_dict(state["optimizer"])
        rates = list(self.scheduler.base_lrs)
        self.scheduler.load_state_dict(dict(state["scheduler"]))
        self.scheduler.base_lrs = rates
        factor = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group |= {"weight_decay": self.config.weight_decay, "initial_lr": rate}
            group["lr"] = rate * factor
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.micro_batch_tokens = int(state["micro_batch_tokens"])

    def step(
        self, examples: Sequence[TrainingExample], norms: NormSample | None = None
    ) -> UpdateMetrics:
        """``updates_per_step`` optimizer updates on the completions of a step.

        Updates are made even where there is nothing to learn, so that schedules and comparisons stay
        aligned: the gradient is then 0, though AdamW's momentum may still move the weights. A gradient
        that is NaN or infinite is never applied: its update is skipped. Where memory does not suffice,
        micro-batches are halved; the result stays the same, rounding and dropout masks aside.

        Args:
            norms: which are measured; it gets those of this process's completions. Each is measured in
                its update, at the weights that the update starts from. The loss must have no KL penalty,
                and dropout must be off.

        Raises NonFiniteError after more than ``max_skipped`` skipped updates in a row.
        """
        updates = self.config.updates_per_step
        places, chosen = self._parts(examples, updates, norms)
        parts = [[examples[i] for i in part] for part in places]
        set_update_mode(self.policy.model)
        made_before = self.scheduler.last_epoch
        masks = [(self.seed, made_before + u, self.processes.rank) for u in range(updates)]
        # The first update starts from the very weights that it would be compared with.
        old: list[OldLogprobs] = [None]
        tally = UpdateTally()
        for u, part in enumerate(parts):
            own = None if norms is None else (np.full(len(part), np.nan), chosen[places[u]])
            mine = self._fresh_gradient(part, old[u], updates, masks[u], own)
            if u == 0:
                old += self._old_logprobs(parts, masks, mine.log_ratios)
            if norms is not None and own is not None:
                norms.squares[places[u]] = own[0]
            made = mine.summed(self.processes, self.parameters)
            vector = self.projection() if updates > 1 else None
            norm = self._clip()
            if math.isfinite(made.loss) and math.isfinite(norm):
                self.skipped_in_a_row = 0
                self.optimizer.step()
                self.scheduler.step()
                tally.add(made, norm, vector)
            else:
                self._skip(f"update {u + 1} of {updates}", made.loss, norm)
                tally.skipped += 1
        rate = self.scheduler.get_last_lr()[0]
        mismatch = SamplerMismatch()
        if self.loss.needs_old_logprobs:
            mismatch = SamplerMismatch.over(self.processes, tally.log_ratios)
        return tally.metrics(updates, rate, mismatch)

    def gradient(
        self,
        examples: Sequence[TrainingExample],
        old_logprobs: OldLogprobs = None,
        scale: float = 1.0,
        squares: np.ndarray | None = None,
        measured: np.ndarray | None = None,
    ) -> LossGradient:
        """Add ``scale`` times the gradient of the loss to ``.grad``, micro-batch by micro-batch.

        Returns the scaled loss, and sums of metrics. The result does not depend on how the examples fall
        into micro-batches, rounding aside.

        Args:
            old_logprobs: before the first update of the step.
            squares: gets the squared norm of each measured completion's ``grad log pi(y|x)``, float64
                [n]; see :func:`.weighted_backward`. None: nothing is measured.
            measured: which completions are, bool [n]; None: all.
        """
        total, sums = 0.0, dict[str, Tensor]()
        log_ratios: list[Tensor] = []
        if measured is None:
            measured = np.full(len(examples), squares is not None)
        for indices, batch, own in self._batches(examples, scale, measured):
            old = old_logprobs
            if old is not None and old != SAMPLERS:
                old = [old[i] for i in indices]
            chosen = [examples[i] for i in indices]
            made, norms = self._batch_gradient(chosen, batch, old, scale, measured=own)
            if squares is not None and norms is not None:
                squares[indices] = norms
            total += made.loss
            for name, value in made.sums.items():
                sums[name] = sums[name] + value if name in sums else value
            log_ratios += made.log_ratios
        return LossGradient(total, sums, log_ratios)

    def _batches(
        self, examples: Sequence[TrainingExample], scale: float, measured: np.ndarray
    ) -> Iterator[tuple[list[int], Batch, bool]]:
        """Micro-batches with the indices of their examples, and whether their norms are measured.

        Norms need the gradient at a prompt's tokens from each completion by itself. So prompts are not
        shared where norms are measured.
        """
        apart, others = np.flatnonzero(measured).tolist(), np.flatnonzero(~measured).tolist()
        for found in self.policy.micro_batches(
            [examples[i] for i in apart], self.micro_batch_tokens
        ):
            # Completions that are only measured come last.
            indices = sorted(
                (apart[i] for i in found), key=lambda i: slope(examples[i], scale) == 0
            )
            yield indices, self.policy.collate([examples[i] for i in indices]), True
        rest = [examples[i] for i in others]
        for found, batch in self.policy.batches(rest, self.micro_batch_tokens):
            yield [others[i] for i in found], batch, False

    def _batch_gradient(
        self,
        examples: Sequence[TrainingExample],
        batch: Batch,
        old_logprobs: OldLogprobs,
        scale: float,
        *,
        measured: bool,
    ) -> tuple[LossGradient, Tensor | None]:
        """:meth:`gradient` of one micro-batch, and the completions' squared norms if ``measured``."""
        ref = None
        if self.reference is not None:
            with torch.no_grad():
                ref = self.reference.logprobs(batch)
        made: list[LossGradient] = []

        def loss_of(logprobs: Tensor, entropy: Tensor) -> Tensor:
            scores = logprobs, entropy
            loss, sums, ratios = self._loss(examples, batch, scores, old_logprobs, ref)
            made.append(LossGradient(float(loss.detach()) * scale, sums, ratios))
            return loss * scale

        squares = None
        if isinstance(batch, TokenBatch) and measured:
            nominal = self._column([slope(example, scale) for example in examples])
            squares = weighted_backward(self.policy, batch, loss_of, nominal).cpu()
        else:
            loss_of(*self.policy.logprobs_and_entropy(batch)).backward()
        return made[0], squares

    def _loss(
        self,
        examples: Sequence[TrainingExample],
        batch: Batch,
        scores: tuple[Tensor, Tensor],
        old_logprobs: OldLogprobs,
        ref: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """The loss of a batch, its sums of metrics, and its log-ratios of learner to sampler.

        ``scores``: log-probabilities and entropies, [B, T] each.
        """
        logprobs, entropy = scores
        advantages = self._column([e.advantage for e in examples])
        learned = advantages != 0 if self.loss.beta == 0 else torch.ones_like(advantages).bool()
        old = sampling = None
        ratios: list[Tensor] = []
        if self.loss.needs_old_logprobs:
            old = logprobs.detach()
            if old_logprobs is not None and old_logprobs != SAMPLERS:
                old = pad_sequence(old_logprobs, batch_first=True)
            sampling = padded_sampling_logprobs(examples, old)
            if old_logprobs == SAMPLERS:
                old = sampling
            else:
                ratios = log_ratio_rows(old - sampling, examples, learned.tolist())
        loss, parts = self.loss(
            logprobs,
            batch.completion_mask & learned.unsqueeze(1),
            advantages,
            self._column([e.weight for e in examples]),
            old,
            ref,
            sampling,
        )
        parts["entropy"] = (entropy * learned.unsqueeze(1)).sum()
        return loss, parts, ratios

    def _parts(
        self, examples: Sequence[TrainingExample], updates: int, norms: NormSample | None
    ) -> tuple[list[list[int]], np.ndarray]:
        """The completions of each update that this process computes the gradient of, by index.

        Returned too is of which completions norms are measured, bool [n].
        """
        seed = self.seed, self.scheduler.last_epoch
        dealt = deal([example.context_ids for example in examples], updates, seed)
        chosen, shared = np.zeros(len(examples), dtype=bool), self.policy.shares_prompts
        if norms is not None:
            chosen = choose_measured(examples, dealt, norms, shared=shared, seed=(*seed, 1))
        if self.loss.beta == 0:
            # A completion of advantage 0 has no gradient. It is left out only after the completions are
            # dealt: otherwise the sizes of the updates would depend on what is learned from them, and
            # the spread of their gradients would not show the gradient's noise.
            dealt = [[i for i in part if examples[i].advantage != 0 or chosen[i]] for part in dealt]
        mine = [
            own_share(part, examples, self.processes, chosen if shared else None) for part in dealt
        ]
        return mine, chosen

    def _fresh_gradient(
        self,
        examples: Sequence[TrainingExample],
        old_logprobs: OldLogprobs,
        scale: float,
        masks: Sequence[int],
        norms: tuple[np.ndarray, np.ndarray] | None,
    ) -> LossGradient:
        """:meth:`gradient` in place of what ``.grad`` held, in micro-batches that fit into memory."""

        def from_zero() -> LossGradient:
            self.optimizer.zero_grad(set_to_none=False)
            with dropout_masks(*masks):
                return self.gradient(examples, old_logprobs, scale, *(norms or ()))

        return self._with_fitting_batches(examples, from_zero)

    def _clip(self) -> float:
        """Clip the gradient to ``max_grad_norm``; its norm before."""
        limit = self.config.max_grad_norm or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters, limit))

    def _skip(self, which: str, loss: float, norm: float) -> None:
        """Count an update that is not made, since its loss or gradient is NaN or infinite."""
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.max_skipped:
            raise NonFiniteError(
                f"{which}: the loss is {loss}, the gradient norm {norm}, after "
                f"{self.skipped_in_a_row - 1} skipped updates in a row"
            )
        self.optimizer.zero_grad(set_to_none=False)

    def _with_fitting_batches(
        self, examples: Sequence[TrainingExample], run: Callable[[], _Result]
    ) -> _Result:
        """``run()`` in micro-batches that fit into memory; smaller ones stay for the rest of the run."""

        def with_tokens(tokens: int) -> _Result:
            self.micro_batch_tokens = tokens
            return run()

        longest = max(lengths(examples), default=self.micro_batch_tokens)
        result, self.micro_batch_tokens = with_smaller_batches(
            with_tokens, self.micro_batch_tokens, longest
        )
        return result

    def _old_logprobs(
        self,
        parts: Sequence[Sequence[TrainingExample]],
        masks: Sequence[Sequence[int]],
        log_ratios: Sequence[Tensor],
    ) -> Sequence[OldLogprobs]:
        """``log pi`` of each part but the first before the first update; None if without use.

        ``log_ratios``: of the first part. Where the sampler agrees with the learner on these, no other
        completion is computed once more; never with importance sampling, which is for those that differ.
        """
        first, *later = parts
        if not self.loss.needs_old_logprobs:
            return [None] * len(later)
        every = [example for part in later for example in part]
        weighed = self.loss.importance_sampling is not None
        if not weighed and sampler_agrees(log_ratios, first, every):
            return [SAMPLERS] * len(later)

        def masked(part: Sequence[TrainingExample], mask: Sequence[int]) -> list[Tensor]:
            with dropout_masks(*mask):
                return self._logprobs(part)

        if not self.policy.shares_prompts:
            return [
                self._with_fitting_batches(part, partial(masked, part, mask))
                for part, mask in zip(later, masks[1:], strict=True)
            ]
        # There is no dropout. More completions of a prompt share it if all parts are computed at once.
        found = iter(self._with_fitting_batches(every, partial(self._logprobs, every)))
        return [list(islice(found, len(part))) for part in later]

    @torch.no_grad()
    def _logprobs(self, examples: Sequence[TrainingExample]) -> list[Tensor]:
        logprobs: dict[int, Tensor] = {}
        for indices, batch in self.policy.batches(examples, self.micro_batch_tokens):
            for i, row in zip(indices, self.policy.logprobs(batch), strict=True):
                logprobs[i] = row[: max(len(examples[i].completion_ids), 1)]
        return [logprobs[i] for i in range(len(examples))]

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.policy.device)
