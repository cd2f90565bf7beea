"""verl's synchronous trainer with a budget: counts before the rollout, weights after it.

This file has all departures from verl's trainer:

- Every prompt has its own count. The sum of the counts is that of a uniform run, so mini-batches and
  optimizer updates are those of a uniform run too.
- With ``dibs.pool``, prompts of the whole training set are chosen in place of those of verl's batch.
- Rows are dealt to mini-batches where counts are ragged, so that each holds even shares of every prompt.
- Advantages are multiplied by factors that turn verl's mean into the estimator. KL, entropy and the
  critic's loss are weighed likewise.
- A critic's advantages are whitened with those factors.
- Under a group baseline, a group of one has advantage 0.
- A mean baseline shrinks a group's gradient as it does at the uniform size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import torch
import transfer_queue
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_to_nested

import dibs.integrations.verl.registered_losses  # noqa: F401  registers the advantage estimator
from dibs.allocation.prompt_budget import PromptBudget
from dibs.integrations.budget_state import VERL_FILE, load_budget, write_state
from dibs.integrations.loss_lengths import verl_normalization
from dibs.integrations.pools import PoolConfig
from dibs.integrations.verl.candidates import Candidates, prompt_names
from dibs.integrations.verl.groups import Groups, dealt_rows, splits
from dibs.integrations.verl.hooks import HOOKS
from dibs.integrations.verl.last_layer import MEASURE, SCORES, TERMS
from dibs.integrations.verl.observed import SCORED, observed, observed_with_norms, row_sums
from dibs.integrations.verl.options import ESTIMATOR, TRAINER, VerlOptions, aggregation, read_block
from dibs.integrations.verl.row_weights import RowWeights, weigh_rows, whiten
from dibs.integrations.verl.weighted_terms import ACTOR_WEIGHTS, CRITIC_WEIGHTS, critic_loss
from dibs.integrations.verl.worker import BudgetWorker

logger = logging.getLogger(__name__)


def make_budget(config: Any, options: VerlOptions, budget: PoolConfig) -> PromptBudget:
    """Make the budget whose gradient norms are those of the loss that verl's configuration chooses."""
    mode = aggregation(config.actor_rollout_ref.actor)
    measured = options.grad_norm == "last_layer"
    return PromptBudget(
        budget, length_normalization=verl_normalization(mode) if measured else "none"
    )


@register_trainer(TRAINER)
class BudgetTrainer(PPOTrainerSync):
    """PPO with per-prompt counts.

    Args:
        config: verl's configuration with the ``dibs`` block, as ``options.adapt`` leaves it.
    """

    def __init__(self, config: Any) -> None:
        HOOKS.check(PPOTrainerSync)
        self.options, self.spending = read_block(config)
        if self.options.counts_path is not None:
            Path(self.options.counts_path).parent.mkdir(parents=True, exist_ok=True)
        self.budget = make_budget(config, self.options, self.spending)
        self.candidates: Candidates | None = None
        self.uids: list[str] = []
        self.names: list[str] = []
        self.counts = np.zeros(0, dtype=np.int64)
        self.weighed = True
        # verl treats a trainer of any other mode as asynchronous.
        config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if worker.__ray_metadata__.modified_class.__mro__[1] is ActorRolloutRefWorker:
                self.role_worker_mapping[role] = ray.remote(BudgetWorker)

    def on_init_end(self) -> None:
        """Find out whether norms can be measured, then send the weights to the rollout as verl does."""
        self.measures_norms = self.options.grad_norm == "last_layer"
        if self.measures_norms:
            reason = next(filter(None, self.actor_rollout_wg.grad_norm_obstacle()), None)
            if reason is not None:
                self._take_norms_as_constant(reason)
        if self.spending.pool is not None:
            self.candidates = Candidates.of(self.train_dataset, self.spending, self.config)
        if self.use_critic:
            critic = omega_conf_to_dataclass(self.config.critic)
            self.critic_wg.set_loss_fn(partial(critic_loss, config=critic))
        super().on_init_end()

    def _take_norms_as_constant(self, reason: str) -> None:
        self.measures_norms = False
        logger.warning("dibs: gradient norms are taken as constant: %s", reason)

    # Before the rollout.

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        if not self.weighed:
            raise HOOKS.untested_version("a step was trained without _compute_advantage")
        self.weighed = False
        uniform = len(batch) * self.config.actor_rollout_ref.rollout.n
        batch = self._allocated(batch) if self.candidates is None else self._chosen(self.candidates)
        if self.counts.sum() != uniform:
            # verl would pad the batch or drop rows to make their number divisible.
            raise RuntimeError(
                f"allocator {self.budget.config.allocator} gave {self.counts.sum()} completions to "
                f"{len(batch)} prompts; uniform counts are {uniform}, and verl divides them by "
                f"{self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes} devices"
            )
        batch["__rollout_n__"] = NonTensorStack(*self.counts.tolist())
        return int(super()._submit_batch_to_rollout(batch))

    def _allocated(self, batch: TensorDict) -> TensorDict:
        """Decide the counts of the prompts of verl's batch."""
        self.uids, self.names = list(batch["uid"]), prompt_names(batch)
        if self.budget.config.mode == "pilot":
            self._draw_pilots(batch)
        self.counts = self.budget.allocate(self.names)
        return batch

    def _chosen(self, candidates: Candidates) -> TensorDict:
        """Choose prompts of a pool and their counts, in place of verl's batch."""
        positions = candidates.pool.candidates(self.budget.step)
        if self.budget.config.mode == "pilot":
            self.names = candidates.pool.named(positions)
            self._draw_pilots(candidates.batch(positions, self.global_steps))
        chosen = candidates.pool.choose(self.budget, positions)
        self.names, self.counts = chosen.prompt_ids, chosen.counts
        batch = candidates.batch(chosen.positions, self.global_steps)
        self.uids = list(batch["uid"])
        return batch

    def _step_once(self, metrics: Any, timing_raw: Any, sample_batch_size: int) -> Any:
        # verl waits for as many prompts as its own batch has.
        return super()._step_once(metrics, timing_raw, len(self.uids))

    def _draw_pilots(self, batch: TensorDict) -> None:
        """Draw fresh completions that decide the counts, and remove them from verl's queue."""
        pilots = batch.clone(recurse=False)
        uids = [str(uuid4()) for _ in self.names]
        pilots["uid"] = NonTensorStack(*uids)
        pilots["__rollout_n__"] = NonTensorStack(*[self.options.num_pilots] * len(batch))
        super()._submit_batch_to_rollout(pilots)
        drawn, _ = self.replay_buffer.sample(
            global_steps=self.global_steps, partition_id="train", batch_size=len(batch)
        )
        colocated = self.reward_loop_manager.reward_loop_worker_handles is None
        if colocated or self.measures_norms:
            # Rollout, reward model and trainer take turns on the device.
            self.checkpoint_manager.sleep_replicas()
        if colocated:
            drawn = self._compute_reward_colocate(drawn)
        if self.measures_norms:
            drawn = super()._balance_batch(drawn, metrics={})
            drawn.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
            drawn = self._old_log_prob(drawn, {}, measure=True)
        if colocated or self.measures_norms:
            self.checkpoint_manager.update_weights(self.global_steps - 1)
        groups = Groups(uids, drawn.keys)
        fields = ["response_mask", "rm_scores", *(SCORED if self.measures_norms else [])]
        told = self._observed(groups, self._read(drawn, fields), self.measures_norms)
        self.budget.take_pilots(self.names, **told)
        transfer_queue.kv_clear(keys=drawn.keys, partition_id=drawn.partition_id)

    # After the rollout.

    def _balance_batch(self, batch: Any, metrics: dict[str, Any], **how: Any) -> Any:
        """Give the devices rows as verl does; under ragged counts, deal these to mini-batches."""
        batch = super()._balance_batch(batch, metrics, **how)
        devices = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        actor, each = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout.n
        critic = self.config.critic.ppo_mini_batch_size * each if self.use_critic else None
        # Without an update of the actor, verl does not make the batch divisible.
        parts = splits(len(batch.keys), actor.ppo_mini_batch_size * each, critic)
        if np.ptp(self.counts) > 0 and parts:
            seed = (int(actor.data_loader_seed or 0), self.global_steps)
            batch.reorder(dealt_rows(batch.keys, devices, parts, seed))
        return batch

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        scored = self._learns_norms and not self.budget.config.target.given
        return self._old_log_prob(batch, metrics, measure=scored)

    def _old_log_prob(self, batch: Any, metrics: dict[str, Any], *, measure: bool) -> Any:
        """Score completions as verl does, and measure gradient norms in the same pass if ``measure``."""
        correction = self.config.algorithm.get("rollout_correction")
        if measure and correction and correction.get("bypass_mode", False):
            # verl takes the rollout's log-probabilities and does no forward pass of its own.
            self._measure(batch, SCORES)
            measure = False
        if measure:
            batch.extra_info[MEASURE] = SCORES
        scored = super()._compute_old_log_prob(batch, metrics)
        for each in (batch, scored):
            each.extra_info.pop(MEASURE, None)
        return scored

    def _measure(self, batch: Any, what: str) -> None:
        """Measure gradient norms in a forward pass that verl does not make."""
        batch.extra_info |= {
            MEASURE: what,
            "temperature": self.config.actor_rollout_ref.rollout.temperature,
            "calculate_entropy": False,
            "compute_loss": False,
            "no_lora_adapter": False,  # the pass of the reference policy may have set it
        }
        self.actor_rollout_wg.compute_log_prob(batch)
        del batch.extra_info[MEASURE]

    @property
    def _learns_norms(self) -> bool:
        """Whether norms of training completions decide later counts: in mode ``online`` they do."""
        return self.measures_norms and self.budget.config.mode == "online"

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        groups = Groups(self.uids, batch.keys)
        self._check_received(groups, batch.tags)
        self.weighed = True
        in_reward = self.config.algorithm.use_kl_in_reward
        fields = ["response_mask", "rm_scores", "advantages"]
        data = self._read(batch, [*fields, *(["token_level_rewards"] if in_reward else [])])
        scores = groups.last(row_sums(data["rm_scores"]))
        penalized = groups.last(row_sums(data["token_level_rewards"])) if in_reward else scores
        weights = weigh_rows(
            self.budget, self.config, groups, row_sums(data["response_mask"]), penalized
        )
        advantages = self._own_advantages(data, weights)
        if self._learns_norms:
            if self.budget.config.target.given:
                self._write(batch, {"advantages": response_to_nested(advantages, data["lengths"])})
                self._measure(batch, TERMS)
            data |= self._read(batch, ["response_mask", *SCORED])
        self.budget.update(self.names, **self._observed(groups, data, self._learns_norms))
        self._record(groups, scores, metrics)
        if self.config.algorithm.adv_estimator != ESTIMATOR and weights.change_nothing:
            return batch  # uniform counts: verl's advantages as they are
        scale = torch.from_numpy(weights.advantages).float().unsqueeze(1)
        written = {"advantages": response_to_nested((advantages * scale).float(), data["lengths"])}
        if not weights.change_nothing:
            named = ((ACTOR_WEIGHTS, weights.actor), (CRITIC_WEIGHTS, weights.critic))
            written |= {name: torch.from_numpy(each).float()[:, None] for name, each in named}
        return self._write(batch, written)

    def _own_advantages(self, data: dict[str, Any], weights: RowWeights) -> torch.Tensor:
        """Advantages of each token before they are weighed, [rows, T]."""
        advantages: torch.Tensor = data["advantages"]
        if self.config.algorithm.adv_estimator == ESTIMATOR:
            return torch.from_numpy(weights.own).unsqueeze(1) * data["response_mask"]
        if self.budget.config.target.given and not weights.change_nothing:
            mask = data["response_mask"].double().numpy()
            whitened = whiten(advantages.double().numpy(), mask, weights.actor)
            return torch.from_numpy(whitened).float()
        return advantages

    @staticmethod
    def _write(batch: Any, fields: dict[str, torch.Tensor]) -> Any:
        return transfer_queue.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(fields, batch_size=len(batch)),
        )

    def _check_received(self, groups: Groups, tags: Sequence[dict[str, Any]]) -> None:
        """Raise RuntimeError for more completions than requested; fewer mean that some failed."""
        wanted = sum(not tag.get("is_padding", False) for tag in tags)
        if groups.known != wanted or (groups.sizes > self.counts).any():
            raise RuntimeError(
                f"{groups.sizes.sum()} completions of this step's prompts came, {wanted} rows in all, "
                f"where {self.counts.sum()} were asked for, at most {self.counts.max()} of one: a "
                "sampler or agent loop draws by rules of its own; leave it out"
            )

    def _read(self, batch: Any, fields: Sequence[str]) -> dict[str, Any]:
        """Read fields of a batch, padded to [rows, T]. ``lengths`` is the mask without padding."""
        data = transfer_queue.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields)
        )
        lengths = data["response_mask"]
        return {**data.to_padded_tensor(), "lengths": lengths}

    def _observed(self, groups: Groups, data: dict[str, Any], measured: bool) -> dict[str, Any]:
        """Return what was observed of the prompts, as arguments of :meth:`PromptBudget.update`.

        If no norm is finite, norms are taken as constant from here on.
        """
        if measured:
            found = observed_with_norms(groups, data, self.budget.memory.length_normalization)
            if found is not None:
                return found
            self._take_norms_as_constant(
                "the model's logits are not its output layer's, or not finite"
            )
        return observed(groups, data)

    def _record(
        self, groups: Groups, rewards: Sequence[Sequence[float]], metrics: dict[str, Any]
    ) -> None:
        """Record the step's metrics under ``dibs/``, and its counts if ``counts_path`` is set."""
        known = {k: v for k, v in self.budget.metrics().items() if isinstance(v, int | float)}
        spread = [bool(np.ptp(each)) for each in rewards if len(each)]
        metrics |= {f"dibs/{key}": float(value) for key, value in known.items()}
        metrics |= {
            "dibs/missing_completions": float(self.counts.sum() - groups.sizes.sum()),
            "dibs/zero_spread_groups": 1 - float(np.mean(spread)) if spread else 1.0,
            "dibs/norms_measured": float(self.measures_norms),
        }
        if self.options.counts_path is not None:
            line = {
                "step": self.global_steps,
                "prompts": self.names,
                "requested": self.counts.tolist(),
                "received": groups.sizes.tolist(),
            }
            with Path(self.options.counts_path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    # Checkpoints.

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps > 0:
            path = self._checkpoint() / VERL_FILE
            if not load_budget(path, self.budget):
                logger.warning("dibs: the checkpoint has no %s; nothing is known of prompts", path)
        elif self.options.state_path is not None:
            load_budget(Path(self.options.state_path), self.budget)

    def _save_checkpoint(self) -> None:
        # The state is written before verl records this checkpoint as its newest. If the run is killed in
        # between, the newest checkpoint still has its state.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        write_state(folder / VERL_FILE, self.budget.state())
        super()._save_checkpoint()
        self._keep_state()

    def _checkpoint(self) -> Path:
        """Return the folder that verl resumed from."""
        if self.config.trainer.resume_mode == "resume_path":
            return Path(self.config.trainer.resume_from_path)
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"

    def fit(self, agent_loop_manager: Any) -> None:
        """Train, then write the statistics of each prompt for other runs if ``state_path`` is set."""
        super().fit(agent_loop_manager)
        self._keep_state()

    def _keep_state(self) -> None:
        if self.options.state_path is not None:
            write_state(Path(self.options.state_path), self.budget.state())
