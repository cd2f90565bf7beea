"""The records that training leaves: metrics of a step, its allocation, samples of its completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dibs.allocation.choice import Choice
from dibs.rollouts.source import DrawCost
from dibs.training.totals import Totals
from dibs.types import Allocation, Group, PromptStats, Rollout

HISTOGRAM_BINS = 5
"""Few, so that no bin stays empty only because k accepted of 4 or 8 pilots cannot fall into it."""


@dataclass(frozen=True)
class StepRecord:
    """A finished step with its metrics (keys with ``second`` in their name are timings)."""

    step: int
    metrics: dict[str, Any]
    groups: Sequence[Group]
    stats: PromptStats
    allocation: Allocation


@dataclass(frozen=True)
class StepSpending:
    """What a step drew: ``cost``, of ``processes`` that shared the work."""

    cost: DrawCost
    processes: int

    def metrics(self) -> dict[str, float]:
        """Completions that did not arrive, and how uneven the shares of the processes were."""
        return {
            "missing_completions": self.cost.missing,
            "token_imbalance": self.cost.imbalance(self.processes),
        }


def step_record(
    step: int,
    totals: Totals,
    groups: Sequence[Group],
    choice: Choice,
    found: Mapping[str, Any],
    spending: StepSpending,
) -> StepRecord:
    """The record of a step, without timings.

    Args:
        groups: all that was trained on, a group for each of the m prompts.
        choice: of the prompts and their counts.
        found: metrics of the step's other parts, which follow the totals.
    """
    stats, allocation = choice.stats, choice.allocation
    metrics = {
        "step": step,
        **asdict(totals),
        **found,
        **describe_step(groups, stats, allocation),
        **choice.metrics,
        **spending.metrics(),
    }
    return StepRecord(step, metrics, groups, stats, allocation)


def describe_step(
    groups: Sequence[Group], stats: PromptStats, allocation: Allocation
) -> dict[str, Any]:
    """Rewards, group spread and budget use of a step; means over nothing are None."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    sampled = [group for group in groups if group.rollouts]
    counts = allocation.counts
    return {
        "reward": _mean([rollout.reward for rollout in rollouts]),
        **mean_rewards(rollouts),
        "accept_rate": _mean([rollout.accepted for rollout in rollouts]),
        "accepted": sum(rollout.accepted for rollout in rollouts),
        "verifier_timeouts": _without_verdict(groups, "timeout"),
        "verifier_errors": _without_verdict(groups, "error"),
        "no_answer_share": _mean([rollout.status == "no_answer" for rollout in rollouts]),
        "completion_length": _mean([len(rollout.completion.token_ids) for rollout in rollouts]),
        "truncated_share": _mean([not rollout.completion.finished for rollout in rollouts]),
        "zero_spread_share": _mean([np.ptp(group.rewards) == 0 for group in sampled]),
        "count_sum": int(counts.sum()),
        "count_min": int(counts.min()),
        "count_max": int(counts.max()),
        "starved_prompts": int((counts == 0).sum()),
        "estimated_accept_rate": _mean(_known(stats.accept_rate)),
        "estimated_grad_norm": _mean(_known(stats.grad_norm)),
        "accept_rate_histogram": accept_rate_histogram(prompt_accept_rates(groups, stats)),
    }


def mean_rewards(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Means of the rewards of ``verify.rewards`` by name, ``reward/NAME``; none where there is one."""
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.rewards)
    return {
        f"reward/{name}": _mean([r.rewards[name] for r in rollouts if name in r.rewards])
        for name in names
    }


def prompt_accept_rates(groups: Sequence[Group], stats: PromptStats) -> np.ndarray:
    """Accept rate of each prompt, float64 [m]: the pilots', else the group's own, else NaN."""
    rates = stats.accept_rate
    for i, group in enumerate(groups):
        if np.isnan(rates[i]) and group.rollouts:
            rates[i] = group.accepted.mean()
    return rates


def accept_rate_histogram(rates: np.ndarray) -> list[int]:
    """Prompts in each of five equal bins of [0, 1]; NaN is left out."""
    return np.histogram(_known(rates), bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()


def describe_prompts(
    step: int, groups: Sequence[Group], stats: PromptStats, allocation: Allocation
) -> dict[str, Any]:
    """The step's line of allocations.jsonl, one entry a prompt in every list.

    ``judged`` falls short of ``count`` by completions that did not come or were left out for want of a
    verdict. Those that got reward 0 for it are among the judged: the group learns from that reward.
    Prompts that were chosen from a pool also have the ``expected_count`` that they were drawn with.
    """
    expected = allocation.expected
    return {
        "step": step,
        "allocator": allocation.allocator,
        "prompt_id": [group.prompt.prompt_id for group in groups],
        "accept_rate": prompt_accept_rates(groups, stats).tolist(),
        "trials": np.asarray(stats.trials).tolist(),
        "grad_norm": np.asarray(stats.grad_norm).tolist(),
        "count": allocation.counts.tolist(),
        **({} if expected is None else {"expected_count": expected.tolist()}),
        "judged": [len(group.rollouts) for group in groups],
        "accepted": [int(group.accepted.sum()) for group in groups],
    }


def sample_records(
    step: int, groups: Sequence[Group], stats: PromptStats, allocation: Allocation, limit: int = 3
) -> list[dict[str, Any]]:
    """``limit`` completions of prompts at even distances from the hardest to the easiest.

    The first completion of each; more of them where there are fewer prompts than that, all at most.
    """
    rates = prompt_accept_rates(groups, stats)
    order = [int(i) for i in np.argsort(rates, kind="stable") if groups[int(i)].rollouts]
    if not order:
        return []
    picks = np.linspace(0, len(order) - 1, min(limit, len(order))).round().astype(int)
    chosen = [order[int(pick)] for pick in picks]
    # Round by round: every prompt's first completion, then every second one, as far as the limit goes.
    ranked = sorted((turn, place) for place, i in enumerate(chosen) for turn in _turns(groups[i]))
    kept = sorted((place, turn) for turn, place in ranked[:limit])
    return [
        _sample_record(step, groups[i].rollouts[turn], float(rates[i]), int(allocation.counts[i]))
        for i, turn in ((chosen[place], turn) for place, turn in kept)
    ]


def _turns(group: Group) -> range:
    return range(len(group.rollouts))


def _sample_record(step: int, rollout: Rollout, rate: float, count: int) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": rollout.prompt.prompt_id,
        "prompt": rollout.prompt.text,
        "completion": rollout.completion.text,
        "answer": rollout.prompt.answer,
        "reward": rollout.reward,
        **({"rewards": dict(rollout.rewards)} if rollout.rewards else {}),
        "status": rollout.status,
        "accept_rate": rate,
        "count": count,
    }


def _without_verdict(groups: Sequence[Group], status: str) -> int:
    """Completions that the verifier gave up on, excluded ones and those that got reward 0."""
    return sum(
        group.unreached.count(status) + [r.status for r in group.rollouts].count(status)
        for group in groups
    )


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
