"""What reaches the updates, completion by completion, against the formulas written out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from rich.console import Console

from dibs.allocation.posterior import fit_posterior
from dibs.config.load import load_config, split_config
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.training.norm_sample import NormSample
from dibs.training.update_metrics import UpdateMetrics
from dibs.types import Group, TrainingExample
from tiny_runs import options

PROMPTS, LONGEST = 8, 12
LIKELIHOOD = "--algorithm.objective=log_likelihood"
REWARD = "--algorithm.objective=expected_reward"
ORDER_K = "--algorithm.estimator=order_k"
DEVIATIONS: dict[float, float] = {}
"""Expected deviations by expected accept rates; those of a run."""
PROMPT_MEAN = "--algorithm.estimator=prompt_mean"
Shares = Callable[[Group, float, int, int], np.ndarray]
"""A group, the accept rate that the pilots gave, all completions and all accepted ones of the step to
the factor of each completion's score, [n_i]."""


def accepted_by_rate(group: Group, rate: float, *_: int) -> np.ndarray:
    return group.accepted / rate / (PROMPTS * len(group.rollouts))


def accepted_by_own_rate(group: Group, *_: float) -> np.ndarray:
    return group.accepted / max(group.accepted.sum(), 1) / PROMPTS


def centered_by_own_rate(group: Group, *_: float) -> np.ndarray:
    own = group.accepted.mean()
    return (
        (group.accepted - own) / own / (PROMPTS * len(group.rollouts))
        if own
        else 0.0 * group.rewards
    )


def centered_by_rate(group: Group, rate: float, *_: int) -> np.ndarray:
    centered = group.accepted - group.accepted.mean()
    return centered / rate / (PROMPTS * len(group.rollouts))


def rewards(group: Group, *_: float) -> np.ndarray:
    return group.rewards / (PROMPTS * len(group.rollouts))


def less_the_others(group: Group, *_: float) -> np.ndarray:
    n = len(group.rollouts)
    others = (group.rewards.sum() - group.rewards) / (n - 1)
    return (group.rewards - others) / (PROMPTS * n)


def by_deviation(group: Group, *_: float) -> np.ndarray:
    spread = group.rewards.std()
    centered = group.rewards - group.rewards.mean()
    return (centered / spread if spread else centered) / (PROMPTS * len(group.rollouts))


def by_subsets(group: Group, *_: float) -> np.ndarray:
    n = len(group.rollouts)
    assert n >= 2
    total, pairs = np.zeros(n), list(itertools.combinations(range(n), 2))
    for pair in pairs:
        chosen = list(pair)
        total[chosen] += group.accepted[chosen] / max(group.accepted[chosen].sum(), 1)
    return total / len(pairs) / PROMPTS


def by_known_deviation(group: Group, rate: float, *_: int) -> np.ndarray:
    n = len(group.rollouts)
    others = (group.rewards.sum() - group.rewards) / max(n - 1, 1)
    return (group.rewards - others) / DEVIATIONS[rate] / (PROMPTS * n)


def flat(group: Group, _: float, __: int, accepted: int) -> np.ndarray:
    return group.accepted / accepted


def quad_deviation(alpha: float, beta: float) -> float:
    """E[sqrt(p (1 - p))] of a Beta distribution, by quadrature over the logit of p."""
    points, weights = leggauss(400)
    logits = 40 * points
    p = 1 / (1 + np.exp(-logits))
    logs = alpha * np.log(p) - beta * np.logaddexp(0, logits)
    density = np.exp(logs - logs.max()) * weights
    return float(
        (density * np.sqrt(p) * np.exp(-np.logaddexp(0, logits) / 2)).sum() / density.sum()
    )


@pytest.mark.parametrize(
    ("more", "shares", "divisor"),
    [
        ((), accepted_by_own_rate, None),
        ((PROMPT_MEAN,), accepted_by_rate, None),
        (("--algorithm.estimator=flat",), flat, None),
        ((ORDER_K, "--algorithm.order=2"), by_subsets, None),
        (("--algorithm.name=grpo", "--algorithm.deviation=expected"), by_known_deviation, None),
        ((LIKELIHOOD, "--algorithm.baseline=mean"), centered_by_own_rate, None),
        ((LIKELIHOOD, "--algorithm.baseline=mean", PROMPT_MEAN), centered_by_rate, None),
        ((REWARD,), rewards, None),
        ((REWARD, "--algorithm.baseline=leave_one_out"), less_the_others, None),
        (("--algorithm.name=grpo",), by_deviation, None),
        (("--algorithm.name=grpo", "--algorithm.length_normalization=sequence"), by_deviation, 0),
        ((PROMPT_MEAN, "--algorithm.length_normalization=constant"), accepted_by_rate, LONGEST),
    ],
)
def test_the_updates_see_the_gradient_the_estimator_promises(
    tmp_path, monkeypatch, more, shares, divisor
):
    """``divisor``: of each completion; 0: its length, None: 1."""
    config = load_config(*split_config(options(tmp_path / "run", *more)))
    trainer = build_trainer(config, PlainView(Console(quiet=True)))
    seen: list[TrainingExample] = []
    update = trainer.updater.step

    def noted(examples: Sequence[TrainingExample], *norms: NormSample | None) -> UpdateMetrics:
        seen.extend(examples)
        return update(examples, *norms)

    monkeypatch.setattr(trainer.updater, "step", noted)
    record = next(trainer.run())
    trainer.source.close()
    known = fit_posterior(record.stats)
    rates = known.accept_rate
    deviations = [quad_deviation(a, b) for a, b in zip(known.alpha, known.beta, strict=True)]
    DEVIATIONS.update(zip(rates.tolist(), deviations, strict=True))
    assert len(set(rates.round(6))) > 1
    total = sum(len(group.rollouts) for group in record.groups)
    accepted = sum(int(group.accepted.sum()) for group in record.groups)
    assert len(seen) == total == 32
    examples = iter(seen)
    for group, rate in zip(record.groups, rates, strict=True):
        expected = shares(group, rate, total, accepted)
        for rollout, share in zip(group.rollouts, expected, strict=True):
            example = next(examples)
            assert example.completion_ids == rollout.completion.token_ids
            by = len(example.completion_ids) if divisor == 0 else divisor or 1
            assert example.weight * example.advantage == pytest.approx(share / by, abs=1e-12)
