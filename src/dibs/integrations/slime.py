"""Prompts in slime: a dynamic sampling filter that learns, and a data source that chooses by it.

::

    # mine.py: --data-source-path mine.DIBSDataSource
    class DIBSDataSource(PosteriorPrompts, RolloutDataSourceWithBuffer): ...

    # --dynamic-sampling-filter-path dibs.integrations.slime.keep_spread
    # --custom-reward-post-process-path dibs.integrations.slime.weighted_rewards

slime draws groups of one size, so what is chosen here are prompts, not counts. The data source, the
filter and the rewards' function run in one process of slime, its rollout manager.
``docs/recipes/slime.md`` says which of slime's sources this was written for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ValidationError

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_queue import PromptQueue
from dibs.config.wording import one_line, refuse_unknown
from dibs.files import write_json
from dibs.types import InputError

logger = logging.getLogger(__name__)

PROMPT, WEIGHT = "dibs_prompt", "dibs_weight"
"""Keys of a sample's metadata: which prompt it is of, and what its group weighs."""
_SPREAD = 1e-6
"""Rewards that differ by less count as equal, as in slime's own filter."""
_UNFINISHED = ("failed", "aborted")
_NORMALIZED = ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline")
_DIVIDED = ("grpo", "gspo", "cispo")
"""slime's advantage estimators that subtract the group's mean; those that divide by its deviation."""

_QUEUE = ("window", "uniform_share", "seed")
"""Options of the queue; the others are the budget's."""

_queues: list[PromptQueue] = []
"""The queue of the data source that was made last in this process."""
_warned: list[bool] = []
"""Holds something once :func:`_warn_of_terms` has warned."""

if TYPE_CHECKING:

    class _DataSource:
        """What is used of slime's RolloutDataSourceWithBuffer."""

        args: Any
        dataset: Any
        sample_index: int
        sample_group_index: int

        def __init__(self, args: Any) -> None: ...
        def _get_samples_from_buffer(self, num_samples: int) -> list[list[Any]]: ...
        def save(self, rollout_id: int) -> None: ...
        def load(self, rollout_id: int | None = None) -> None: ...

else:
    _DataSource = object


class PosteriorPrompts(_DataSource):
    """Mixed into slime's ``RolloutDataSourceWithBuffer``: prompts come by what is known of them.

    ``options`` are those of :class:`.PromptQueue` and the keys of :class:`.BudgetConfig`; set them in
    the class that mixes this in. Without a filter of this module nothing is learned, and all prompts
    come equally often.

    Raises InputError without a data set (``--prompt-data``), and for unknown options.
    """

    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        if self.dataset is None:
            raise InputError(
                "there are no prompts to choose from; give --prompt-data and --rollout-global-dataset"
            )
        self._prompts = _named(self.dataset.samples)
        group = int(args.n_samples_per_prompt)
        refuse_unknown(self.options, [*_QUEUE, *BudgetConfig.model_fields], "options")
        own = {*_QUEUE} & {*self.options}
        keys = {key: value for key, value in self.options.items() if key not in own}
        try:
            config = BudgetConfig.model_validate({"num_generations": group, **keys})
        except ValidationError as error:
            raise InputError(one_line(error, "options")) from None
        self.queue = PromptQueue(
            sorted(self._prompts), config, group=group, **{key: self.options[key] for key in own}
        )
        _queues[:] = [self.queue]

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """Groups of the prompts to sample next; those that slime put back come first."""
        groups = self._get_samples_from_buffer(num_samples)
        return groups + [self._group() for _ in range(num_samples - len(groups))]

    def save(self, rollout_id: int) -> None:
        """Save slime's state, and beside it what is known of prompts."""
        super().save(rollout_id)
        path = _state_path(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.queue.state())

    def load(self, rollout_id: int | None = None) -> None:
        """Go on from what :meth:`save` wrote, where it is there."""
        super().load(rollout_id)
        if self.args.load is None:
            return
        path = _state_path(self.args.load, rollout_id)
        if not path.exists():
            return
        try:
            self.queue.load_state(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, InputError) as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it to start without statistics"
            ) from None

    def _group(self) -> list[Any]:
        drawn = self.queue.draw()
        group = []
        for _ in range(self.queue.group):
            sample = copy.deepcopy(self._prompts[drawn.prompt_id])
            sample.group_index, sample.index = self.sample_group_index, self.sample_index
            sample.metadata = {
                **(sample.metadata or {}),
                PROMPT: drawn.prompt_id,
                WEIGHT: drawn.weight,
            }
            self.sample_index += 1
            group.append(sample)
        self.sample_group_index += 1
        return group


def keep_spread(args: Any, samples: Sequence[Any], **_: Any) -> Any:
    """Learn from a group, and keep it where its rewards differ: else no completion has an advantage."""
    rewards = _learned(args, samples)
    if len(rewards) > 1 and max(rewards) - min(rewards) > _SPREAD:
        return _verdict(True, None)
    return _verdict(False, f"dibs_all_{rewards[0]:.1f}" if rewards else "dibs_no_reward")


def keep_all(args: Any, samples: Sequence[Any], **_: Any) -> Any:
    """Learn from a group, and keep it."""
    _learned(args, samples)
    return _verdict(True, None)


def weighted_rewards(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Raw rewards, and slime's normalized ones times the weight of their group.

    With these weights the policy's gradient is that of the whole data set, although some prompts come
    more often. Terms that rewards do not multiply, KL and entropy, have no weights; where they are on, a
    warning says so once. Raises InputError for an advantage estimator whose rewards are no advantages.
    """
    if args.advantage_estimator not in _NORMALIZED or not args.rewards_normalization:
        raise InputError(
            f"advantage estimator {args.advantage_estimator} takes no weights here; take one of "
            f"{', '.join(_NORMALIZED)}, with rewards normalization"
        )
    _warn_of_terms(args)
    raw = [float(sample.get_reward_value(args)) for sample in samples]
    groups = np.array([sample.group_index for sample in samples])
    advantages = np.array(raw, dtype=np.float64)
    divided = args.advantage_estimator in _DIVIDED and args.grpo_std_normalization
    for group in np.unique(groups):
        own = advantages[groups == group]
        scale = own.std(ddof=1) + 1e-6 if divided and len(own) > 1 else 1.0
        advantages[groups == group] = (own - own.mean()) / scale
    weights = np.array([(sample.metadata or {}).get(WEIGHT, 1.0) for sample in samples])
    return raw, (advantages * weights).tolist()


def _warn_of_terms(args: Any) -> None:
    """Warn, once in a process, of terms of slime's loss that have no weights."""
    kl = getattr(args, "use_kl_loss", False) and getattr(args, "kl_loss_coef", 0.0)
    entropy = getattr(args, "entropy_coef", 0.0)
    if not (kl or entropy) or _warned:
        return
    _warned.append(True)
    name = "--use-kl-loss" if kl else f"--entropy-coef {entropy:g}"
    logger.warning(
        "dibs: %s has no weights, so prompts that come often count for more in that term; the "
        "policy's gradient is that of the whole data set",
        name,
    )


def _learned(args: Any, samples: Sequence[Any]) -> list[float]:
    """The rewards of a group, a trajectory each; what is known of its prompt takes them in."""
    # An agent may make several samples of one trajectory, which share its reward.
    firsts = [each[0] if isinstance(each, list) else each for each in samples]
    judged = [sample for sample in firsts if sample.reward is not None]
    rewards = [float(sample.get_reward_value(args)) for sample in judged]
    finished = [
        reward
        for sample, reward in zip(judged, rewards, strict=True)
        if getattr(sample.status, "value", sample.status) not in _UNFINISHED
    ]
    prompt = (firsts[0].metadata or {}).get(PROMPT) if firsts else None
    if _queues and prompt is not None and finished:
        _queues[0].observe(prompt, finished)
    return rewards


def _verdict(keep: bool, reason: str | None) -> Any:
    """slime's own kind of answer, which it logs by reason; a truth value where slime is not there."""
    try:
        from slime.rollout.filter_hub.base_types import (  # type: ignore[import-not-found]
            DynamicFilterOutput,
        )
    except ImportError:
        return keep
    return DynamicFilterOutput(keep=keep, reason=reason)


def _named(samples: Sequence[Any]) -> dict[str, Any]:
    """Samples by a name that neither an order nor another process changes."""
    found: dict[str, Any] = {}
    for sample in samples:
        said = json.dumps([sample.prompt, sample.label], sort_keys=True, default=str)
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        name, times = digest, 1
        while name in found:  # the same row again
            times += 1
            name = f"{digest}#{times}"
        found[name] = sample
    return found


def _state_path(folder: str, rollout_id: int | None) -> Path:
    return Path(folder) / "rollout" / f"dibs_{rollout_id}.json"
