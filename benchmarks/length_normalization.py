"""What min_variance gains where the loss divides every completion's gradient by its length.

Two kinds of prompts: completions of half of them have 10 tokens, of the others 100. A completion is
accepted if its last token is in one half of the vocabulary. The policy is a tiny Qwen2 with random
weights, and completions are drawn from it. Of every prompt, 200 completions are the truth: their exact
gradients over all parameters, as inner products. 100 others are those that counts are decided by.

A row is a trainer, a loss of its, a target and a mode:

    dibs  the loss of ``dibs train``: ``algorithm.length_normalization`` none and sequence
    trl   ``loss_type`` grpo and sapo (one gradient at a ratio of 1), and dr_grpo, with TRL's advantages
    verl  ``loss_agg_mode`` seq-mean-token-mean and seq-mean-token-sum, with verl's advantages

    cross_fit  4 pilots a prompt, of which each half decides one part of the gradient
    online     8 earlier completions a prompt decide

The package measures the norms of the deciding completions, for that loss and by its default method, and
decides the counts: 8 a prompt on average. The truth knows nothing of that: groups of n completions are
drawn from its completions again and again, the trainer's formula gives their advantages, and the
variance of the mean of advantage x gradient over each group is measured. It is divided by the squared
share of the target gradient that a group of n keeps (by enumeration; 1 where the estimate is unbiased),
so that a small group gains nothing by learning less.

``gain`` is the variance of uniform counts over the mean variance of 100 draws, the mean over three
policies; ``lowest`` is the least of the three. ``oracle`` is the gain of the best counts for the true
moments of single completions, ``kinds`` that of the best counts that know the kinds of the prompts only,
``captured`` (gain - 1) / (oracle - 1). ``plain`` is the gain where norms
are those of the sum over tokens, whatever the loss divides by.

    python benchmarks/length_normalization.py [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shared import positive
from two_lengths import FORMULAS, Case, Scene, build_scene

from dibs.allocation.allocators import solve
from dibs.allocation.cross_fit import allocation_problems, cross_fit, undivided
from dibs.allocation.least_variance import least_variance
from dibs.allocation.prompt_budget import BudgetConfig, PromptBudget
from dibs.allocation.statistics import pilot_statistics
from dibs.config import Config
from dibs.config.load import load_config
from dibs.integrations.loss_lengths import trained_norms, trl_normalization, verl_normalization
from dibs.model.grad_norms import gradient_norms
from dibs.training.rollout_gradients import RolloutGradients
from dibs.types import Group

PER_PROMPT, PILOTS, EARLIER = 8, 4, 8
LOSSES = {
    "dibs": ("none", "sequence"),
    "trl": ("dr_grpo", "grpo", "sapo"),
    "verl": ("seq-mean-token-sum", "seq-mean-token-mean"),
}
CASES = [
    Case(trainer, loss, target, mode)
    for trainer, losses in LOSSES.items()
    for loss in losses
    for target, formulas in FORMULAS.items()
    if trainer in formulas
    for mode in (("cross_fit", "online") if trainer == "dibs" else ("online",))
]


def dibs_config(case: Case, prompts: int, normalization: str) -> Config:
    """The configuration of ``dibs train``."""
    objective, baseline = case.target
    return load_config(
        Path(__file__).parents[1] / "configs" / "demo.yaml",
        {
            "algorithm.objective": objective,
            "algorithm.baseline": baseline,
            "algorithm.length_normalization": normalization,
            "estimate.mode": case.mode,
            "estimate.num_pilots": str(PILOTS),
            "estimate.interval": "1",
            "estimate.grad_norm": "exact",
            "allocate.allocator": "min_variance",
            "allocate.num_generations": str(PER_PROMPT),
            "train.prompts_per_step": str(prompts),
        },
    )


def norms_by_the_package(scene: Scene, case: Case, *, plain: bool) -> list[np.ndarray]:
    """Norms of the pool's completions, as the trainer measures them; ``plain``: of sums over tokens."""
    key = case.trainer, "plain" if plain else case.loss
    if key not in scene.norms:
        scene.norms[key] = _measured_norms(scene, case, plain=plain)
    return scene.norms[key]


def _measured_norms(scene: Scene, case: Case, *, plain: bool) -> list[np.ndarray]:
    if case.trainer == "dibs":
        config = dibs_config(case, len(scene.pool), "none" if plain else case.loss)
        return RolloutGradients(scene.policy, config).norms(scene.pool, 0)
    found = []
    for group in scene.pool:
        sequences = [rollout.example() for rollout in group.rollouts]
        norms = gradient_norms(scene.policy, sequences, "last_layer").norms
        tokens = np.array([len(each.completion_ids) for each in sequences])
        of = trl_normalization if case.trainer == "trl" else verl_normalization
        found.append(trained_norms(norms, tokens, "none" if plain else of(case.loss)))
    return found


def counts_by_the_package(
    scene: Scene, case: Case, norms: list[np.ndarray], picks: np.ndarray
) -> list[np.ndarray]:
    """Counts of each part of the gradient, decided by the picked completions of the pool."""
    groups = [
        Group(group.prompt, tuple(group.rollouts[j] for j in row))
        for group, row in zip(scene.pool, picks, strict=True)
    ]
    seen = [own[row] for own, row in zip(norms, picks, strict=True)]
    if case.trainer == "dibs":
        config = dibs_config(case, len(groups), case.loss)
        estimate = (
            cross_fit(groups, seen)
            if case.mode == "cross_fit"
            else undivided(pilot_statistics(groups, seen), [group.prompt for group in groups])
        )
        problems = allocation_problems(estimate, config)
        return [solve(problem, "min_variance").counts for problem in problems]
    objective, baseline = case.target
    budget = PromptBudget(
        BudgetConfig(num_generations=PER_PROMPT, objective=objective, baseline=baseline)
    )
    names = [group.prompt.prompt_id for group in groups]
    budget.update(
        names,
        [group.rewards.tolist() for group in groups],
        lengths=[[len(r.completion.token_ids) for r in group.rollouts] for group in groups],
        logprobs=[[sum(r.completion.sampling_logprobs) for r in g.rollouts] for g in groups],
        grad_norms=[each.tolist() for each in seen],
    )
    return [budget.allocate(names)]


def variance_of(scene: Scene, case: Case, parts: list[np.ndarray]) -> float:
    """True variance of the step's gradient, the mean of its parts, up to a factor 1/m^2."""
    others = PILOTS // 2 if case.mode == "cross_fit" and case.target[1] != "none" else 0
    total = sum(
        scene.variance(case, i, int(n), others) for counts in parts for i, n in enumerate(counts)
    )
    return total / len(parts) ** 2


def measure(scene: Scene, case: Case, repeats: int) -> dict[str, float]:
    """Gains of the package's counts, of the best ones and of counts from norms of plain sums."""
    m = len(scene.pool)
    sizes = [PER_PROMPT // 2] * 2 if case.mode == "cross_fit" else [PER_PROMPT]
    even = variance_of(scene, case, [np.full(m, size) for size in sizes])
    sigma = scene.sigma(case)
    of_kind = np.array([sigma[scene.lengths == length].mean() for length in scene.lengths])
    gains = {}
    for name, known in (("oracle", sigma), ("kinds", of_kind)):
        best = [
            least_variance(known, size * m, np.full(m, 2), np.full(m, size * m), np.ones(m))
            for size in sizes
        ]
        gains[name] = even / variance_of(scene, case, best)
    seen = PILOTS if case.mode == "cross_fit" else EARLIER
    for name in ("gain", "plain"):
        norms = norms_by_the_package(scene, case, plain=name == "plain")
        rng = np.random.default_rng(scene.seed)
        spent = []
        for _ in range(repeats):
            order = np.tile(np.arange(len(norms[0])), (m, 1))
            picks = rng.permuted(order, axis=1)[:, :seen]
            parts = counts_by_the_package(scene, case, norms, picks)
            spent.append(variance_of(scene, case, parts))
        gains[name] = even / float(np.mean(spent))
    return gains


def captured(gain: float, oracle: float) -> float | None:
    """The share of what can be gained; None where nothing can."""
    return (gain - 1) / (oracle - 1) if oracle > 1.01 else None


def rows(args: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each case."""
    torch.set_num_threads(1)
    scenes = [build_scene(args, seed) for seed in range(args.policies)]
    result: list[dict[str, object]] = []
    for case in track(CASES, "cases", console=Console(stderr=True)):
        found = [measure(scene, case, args.repeats) for scene in scenes]
        mean = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        result.append(
            {
                "trainer": case.trainer,
                "loss": case.loss,
                "divides_by_length": case.divides,
                "target": "+".join(case.target),
                "mode": case.mode,
                **mean,
                "lowest": min(each["gain"] for each in found),
                "captured": captured(mean["gain"], mean["oracle"]),
            }
        )
    return result


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=positive, nargs=2, default=[10, 100], help="tokens")
    parser.add_argument("--prompts", type=positive, default=16, help="half of each length")
    parser.add_argument("--samples", type=positive, default=200, help="of a prompt: the truth")
    parser.add_argument(
        "--pool", type=positive, default=100, help="of a prompt: they decide counts"
    )
    parser.add_argument("--groups", type=positive, default=400, help="drawn for each variance")
    parser.add_argument(
        "--repeats", type=positive, default=100, help="draws of deciding completions"
    )
    parser.add_argument("--policies", type=positive, default=3, help="random policies")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    args = parser.parse_args()
    result = rows(args)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    table = Table(
        "trainer",
        "loss",
        "target",
        "mode",
        "gain",
        "lowest",
        "oracle",
        "kinds",
        "captured",
        "plain",
    )
    for row in result:
        table.add_row(
            *(str(row[name]) for name in ("trainer", "loss", "target", "mode")),
            *(f"{row[name]:.2f}" for name in ("gain", "lowest", "oracle", "kinds")),
            "-" if row["captured"] is None else f"{row['captured']:.0%}",
            f"{row['plain']:.2f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
