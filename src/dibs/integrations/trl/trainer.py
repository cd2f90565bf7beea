"""TRL's ``GRPOTrainer`` with a count of its own for every prompt.

A generation batch differs from stock TRL in these steps:

1. every prompt of the batch gets an id, and in mode ``pilot`` fresh completions measure it;
2. ``PromptBudget`` divides the rows of the batch among its prompts; their number stays the same. With
   ``DIBSConfig.pool`` it chooses prompts of the whole data set in place of the batch's;
3. TRL generates, scores and shuffles the rows as always;
4. advantages and estimator weights of ``PromptBudget`` replace TRL's advantages;
5. in mode ``online`` the completions update the statistics of their prompts.

TRL's losses are means over the N rows of a batch. So an advantage times N times the estimator's weight
gives the gradient of ``dibs.allocation.target``, up to the divisor that ``loss_type`` chooses. If
the divisor is the batch's number of tokens (``dapo``, ``cispo``, ``vespo``), the tokens are counted with
the same weights. Otherwise the size of the step would depend on the counts.

With equal weights, as with allocator ``uniform``, every number is that of stock TRL. This includes
completions without a reward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from dibs.allocation.prompt_budget import PromptBudget
from dibs.integrations.budget_state import TRL_FILE, read_trl_state, write_state
from dibs.integrations.pools import Pool
from dibs.integrations.trl.batches import contexts_of, loss_mask, sampled_logprobs
from dibs.integrations.trl.config import DIBSConfig
from dibs.integrations.trl.fit import check_policy
from dibs.integrations.trl.groups import (
    Row,
    dealt,
    distinct_rows,
    make_pool,
    own_copies,
    own_names,
    repeated,
    require_text,
    split,
)
from dibs.integrations.trl.hooks import HOOKS, check_attributes, check_batch
from dibs.integrations.trl.kl import weighted_kl
from dibs.integrations.trl.log_metrics import group_numbers, log_numbers
from dibs.integrations.trl.norms import NormMeter
from dibs.processes import Processes
from dibs.types import InputError


class DIBSGRPOTrainer(GRPOTrainer):
    """A replacement for ``trl.GRPOTrainer`` that takes the same arguments and ``dibs``.

    ``dibs``: a :class:`DIBSConfig`. ``counts``: completions of each prompt of the last generation batch.
    ``rollouts``: completions drawn for training so far, pilots included.

    Raises InputError for settings of ``GRPOConfig`` and ``DIBSConfig`` that contradict each other.
    """

    beta: float

    def __init__(self, *args: Any, dibs: DIBSConfig | None = None, **kwargs: Any) -> None:
        HOOKS.check(GRPOTrainer)
        super().__init__(*args, **kwargs)
        check_attributes(self)
        check_policy(self)
        self.dibs = (dibs or DIBSConfig()).for_trainer(self.args)
        if self.tools or self.environment_factories is not None:
            raise InputError(
                "tools and environment_factory write into completions, which DIBSGRPOTrainer does not "
                "follow; leave them out or use GRPOTrainer"
            )
        if self.rollout_func is not None and self.dibs.mode == "pilot":
            raise InputError(
                "DIBSConfig.mode pilot does not go with rollout_func; set it to online, or to none"
            )
        if self.aux_loss_enabled and not self.dibs.equal_weights:
            raise InputError(
                f"router_aux_loss_coef {self.router_aux_loss_coef} takes completions alike, so that "
                f"with allocator {self.dibs.allocator} the counts would change it; set "
                "GRPOConfig.router_aux_loss_coef to 0.0"
            )
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        self.norm_meter = NormMeter(self, self.dibs) if self.dibs.measures_norms else None
        self.budget = PromptBudget(
            self.dibs,
            warns=self.processes.main,
            length_normalization="none"
            if self.norm_meter is None
            else self.norm_meter.normalization,
        )
        self.pool = make_pool(self.dibs, self.args, self.train_dataset)
        self.counts: list[int] = []
        self.rollouts = 0
        self._rewards = torch.zeros(0)
        self._completion_ids: Sequence[Sequence[int]] = []
        self._logprobs: Tensor | None = None
        self._keeps_logprobs = False
        self._reached: set[str] = set()

    # Generation

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        rows, names = self._allocated(inputs) if self.pool is None else self._chosen(self.pool)
        # Processes with different counts would wait for each other without end.
        self.processes.require_same((names, self.counts), "the counts of a batch")
        mine = dealt(repeated(rows, self.counts), self.processes)
        drawn, learned = "_generate_and_score_completions", "_compute_loss"
        if drawn in self._reached and learned not in self._reached:
            raise HOOKS.untested_version(f"GRPOTrainer trained without {learned}")
        self._reached.clear()
        batch = super()._generate_and_score_completions(own_copies(mine))
        needed = ["_calculate_rewards"]
        if self.rollout_func is None:
            needed.append("_generate_single_turn")
        check_batch(batch, len(mine), [name for name in needed if name not in self._reached])
        self._reached.add("_generate_and_score_completions")
        self._weigh_and_learn(names, batch)
        return batch

    def _allocated(self, inputs: list[Row]) -> tuple[list[Row], list[str]]:
        """Return a row of each prompt of TRL's batch, and its name; their counts are decided."""
        rows = distinct_rows(inputs, self.num_generations, self.processes)
        require_text(rows[0])
        names = own_names(rows, self.dibs.prompt_id_column)
        if self.dibs.mode == "pilot":
            self._take_pilots(rows, names)
        total = len(inputs) * self.processes.size
        self.counts = self.budget.allocate(names, total).tolist()
        return rows, names

    def _chosen(self, pool: Pool) -> tuple[list[Row], list[str]]:
        """Return the same of prompts that are chosen from a pool, in place of TRL's batch."""
        candidates = pool.candidates(self.budget.step)
        if self.dibs.mode == "pilot":
            rows = [self.train_dataset[i] for i in candidates.tolist()]
            self._take_pilots(rows, pool.named(candidates))
        chosen = pool.choose(self.budget, candidates)
        self.counts = chosen.counts.tolist()
        return [self.train_dataset[i] for i in chosen.positions.tolist()], chosen.prompt_ids

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # A vLLM server would take every num_generations-th prompt and draw that many completions of it.
        self._reached.add("_generate_single_turn")
        even = not self.model.training or set(self.counts) == {num_generations}
        return super()._generate_single_turn(
            prompt_ids, images, multimodal_fields, num_generations if even else 1, *args, **kwargs
        )

    def _calculate_rewards(
        self,
        inputs: list[Row],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        self._reached.add("_calculate_rewards")
        self._rewards = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        self._completion_ids = completion_ids_list
        return self._rewards

    def _scores(self) -> np.ndarray:
        """Return the rewards of all processes' completions, float64 [N]; NaN without any reward."""
        # In float32, weights of 0.7, 0.2 and 0.1 add up to less than a threshold of 1.
        per_function = self._rewards.double()
        total = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        total[torch.isnan(per_function).all(dim=1)] = torch.nan
        return total.cpu().numpy()

    # Pilots

    def _take_pilots(self, rows: Sequence[Row], names: Sequence[str]) -> None:
        """Draw fresh completions of every prompt, which decide its count and are not trained on."""
        counts = [self.dibs.num_pilots] * len(rows)
        mine = own_copies(dealt(repeated(rows, counts), self.processes))
        prompts = [row["prompt"] for row in mine]
        self.counts = []
        with self._apart():
            prompt_ids, completion_ids, _, completions, *_ = self._generate(prompts)
            self._calculate_rewards(mine, prompts, completions, completion_ids)
        total = sum(counts)
        scores = self._scores()[:total]
        lengths, norms, _ = self._measured(
            lambda: prompt_ids, completion_ids, self._finished(completion_ids), None
        )
        kept = ~np.isnan(scores)
        self.budget.take_pilots(
            names,
            split(scores, counts, kept),
            lengths=split(lengths[:total], counts, kept),
            grad_norms=None if norms is None else split(norms[:total], counts, kept),
        )
        self.rollouts += len(mine) * self.processes.size

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Discard what TRL records of completions inside this context."""
        kept, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            yield
        finally:
            self._metrics["train"] = kept
            self._pending_extra_logs.clear()
            self._pending_metrics.clear()

    # Weights and statistics

    def _weigh_and_learn(self, names: Sequence[str], batch: dict[str, Any]) -> None:
        """Replace TRL's advantages by those of the budget, and update its statistics."""
        scores = self._scores()
        kept = ~np.isnan(scores)
        rewards = split(scores, self.counts, kept)
        advantages, weights = np.zeros((2, len(scores)))
        advantages[kept], weights[kept] = map(np.concatenate, self.budget.weights(rewards))
        # Stock TRL's divisor counts completions without a reward too, so equal weights keep it.
        relative = kept.astype(float) if self.dibs.equal_weights else len(scores) * weights
        self._weigh(batch, advantages, relative)
        if self.dibs.mode == "online":
            measured = self._measured(
                lambda: contexts_of(batch),
                self._completion_ids,
                loss_mask(batch).any(1).cpu().numpy() if self.mask_truncated_completions else None,
                sampled_logprobs(batch),
            )
            lengths, norms, logprobs = (
                None if each is None else split(each, self.counts, kept) for each in measured
            )
            self.budget.update(names, rewards, lengths=lengths, logprobs=logprobs, grad_norms=norms)
        else:
            self.budget.update(names, rewards)
        if self.dibs.algorithm == "raft":
            # Without old log-probabilities TRL's ratio is 1, and only its gradient matters.
            batch.pop("old_per_token_logps", None)
        self.rollouts += len(scores)
        self._log_batch(rewards)

    def _weigh(self, batch: dict[str, Any], advantages: np.ndarray, relative: np.ndarray) -> None:
        """Write advantages times relative weights into this process's batch.

        Args:
            batch: is modified.
            advantages: of all processes' completions, [N].
            relative: their weights divided by the mean weight, [N].
        """
        logged = self._logs["advantages"]
        for _ in advantages:
            logged.pop()
        logged.extend(advantages.tolist())
        own = batch["advantages"]
        share = slice(self.processes.rank * len(own), (self.processes.rank + 1) * len(own))
        weights = torch.as_tensor(relative[share], dtype=torch.float32, device=own.device)
        batch["advantages"] = torch.as_tensor(
            (advantages * relative)[share], dtype=own.dtype, device=own.device
        )
        if not self.dibs.equal_weights:
            batch["dibs_weights"] = weights
            tokens = (weights * loss_mask(batch).sum(1)).sum()
            batch["num_items_in_batch"] = self.accelerator.gather(tokens).sum()

    def _finished(self, completions: Sequence[Sequence[int]]) -> np.ndarray | None:
        """Return which completions the loss counts, bool [n], or None if it counts all."""
        if not self.mask_truncated_completions:
            return None
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        return np.array([ids[-1] in ends for ids in completions])

    def _measured(
        self,
        contexts: Callable[[], Sequence[Sequence[int]]],
        completions: Sequence[Sequence[int]],
        counted: np.ndarray | None,
        logprobs: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Return lengths, gradient norms and log-probabilities of all processes' completions, [N] each.

        Args:
            contexts: returns the tokens before each completion of this process.
            completions: the tokens of each completion of this process.
            counted: whether the loss counts each completion, bool [n]; if not, its norm is 0. None
                counts all.
            logprobs: of the completions of this process, [n], or None.
        """

        def measure() -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
            lengths = np.array([len(ids) for ids in completions], dtype=np.float64)
            norms = None
            if self.norm_meter is not None:
                seed = self.args.seed + self.budget.step
                norms = self.norm_meter.norms(contexts(), completions, seed)
            if counted is not None:
                norms = counted * (np.ones(len(counted)) if norms is None else norms)
            return lengths, norms, logprobs

        parts = self.processes.all_gather_results(measure)
        lengths = np.concatenate([part[0] for part in parts])
        norms, logprobs = (
            None if parts[0][i] is None else np.concatenate([part[i] for part in parts])
            for i in (1, 2)
        )
        return lengths, norms, logprobs

    def _log_batch(self, rewards: Sequence[Sequence[float]]) -> None:
        """Log the metrics of the generation batch."""
        metrics = self._metrics["train"]
        numbers = group_numbers(rewards, self.dibs.accept_threshold)
        metrics["frac_reward_zero_std"][-1] = numbers.pop("flat", 0.0)
        log_numbers(metrics, {**numbers, "rollouts": self.rollouts, **self.budget.metrics()})

    # Loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._keeps_logprobs:
            self._logprobs = found[0]
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.model.training and "_generate_and_score_completions" not in self._reached:
            raise HOOKS.untested_version(
                "GRPOTrainer drew completions without _generate_and_score_completions"
            )
        self._reached.add("_compute_loss")
        if self.beta == 0 or "dibs_weights" not in inputs:
            return super()._compute_loss(model, inputs)
        beta, self.beta, self._keeps_logprobs = self.beta, 0.0, True
        try:
            loss = super()._compute_loss(model, inputs)
            logprobs = self._logprobs
        finally:
            # A reference would keep the graph of the micro-batch alive until the next one.
            self.beta, self._keeps_logprobs, self._logprobs = beta, False, None
        if logprobs is None:
            raise HOOKS.untested_version(
                "its loss does not come from _get_per_token_logps_and_entropies"
            )
        mask = loss_mask(inputs)
        per_update = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.processes.size * per_update
        old = inputs.get("old_per_token_logps", logprobs.detach())
        term, kl = weighted_kl(
            logprobs,
            inputs["ref_per_token_logps"],
            old if self.args.use_bias_correction_kl else None,
            mask,
            inputs["dibs_weights"],
            level=self.importance_sampling_level,
            loss_type=self.loss_type,
            max_completion_length=self.max_completion_length,
            tokens=tokens,
            accumulation=self.current_gradient_accumulation_steps,
        )
        sums = torch.stack([(kl * mask).sum(), mask.sum().float()])
        summed, counted = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics["train"]["kl"].append(summed / max(counted, 1.0))
        return loss + beta * term

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Our file is written first, so that a checkpoint that TRL takes as complete has it.
        def write() -> None:
            if not self.args.should_save:
                return
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = Path(self._get_output_dir(trial=trial)) / name
            state = {"rollouts": self.rollouts, "budget": self.budget.state()}
            write_state(folder / TRL_FILE, state)

        self.processes.all_gather_results(write)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            states = self.processes.all_gather_results(lambda: read_trl_state(Path(checkpoint)))
            state = states[self.processes.rank]
            self.rollouts = int(state["rollouts"])
            self.budget.load_state(state["budget"])
