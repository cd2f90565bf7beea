"""By how much the number of completions changes what a prompt is trained on, exactly.

Where every group has n completions, the expected gradient of a prompt is a factor times its target
gradient: ``grad p / p`` for log_likelihood, ``grad p`` for expected_reward, and ``grad p / sqrt(p (1 -
p))`` for grpo. A factor that differs between counts is a change of the objective by the counts. Factors
are sums over the n + 1 possible numbers of accepted completions, from the advantages and weights that
training uses. Two ways of knowing the accept rate or the deviation beforehand are given the true one.

With ``--replicates``, how well 8, 2 or 32 earlier completions know the deviation of ``deviation:
expected``: mean and standard deviation of true over expected deviation, for 96 prompts with accept
rates from 0.01 to 0.99.

    python benchmarks/count_factors.py [--replicates 500] [--json]
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats as distributions

from dibs.allocation.deviations import expected_deviations
from dibs.allocation.estimators import weigh_rewards
from dibs.allocation.posterior import fit_posterior
from dibs.allocation.target import Target
from dibs.types import PromptStats

RATES, COUNTS, ORDER = (1 / 16, 0.5), (2, 4, 8, 24), 4
ROWS: dict[str, tuple[Target, str, dict]] = {
    "self_normalized, none": (Target("log_likelihood", "none"), "self_normalized", {}),
    "self_normalized, mean": (Target("log_likelihood", "mean"), "self_normalized", {}),
    "prompt_mean, none": (Target("log_likelihood", "none"), "prompt_mean", {}),
    "prompt_mean, mean": (Target("log_likelihood", "mean"), "prompt_mean", {}),
    "order_k, none": (Target("log_likelihood", "none", ORDER), "order_k", {}),
    "order_k, mean": (Target("log_likelihood", "mean", ORDER), "order_k", {}),
    "expected_reward, mean": (Target("expected_reward", "mean"), "prompt_mean", {}),
    "expected_reward, leave_one_out": (
        Target("expected_reward", "leave_one_out"),
        "prompt_mean",
        {},
    ),
    "grpo, population": (Target("grpo", "mean"), "prompt_mean", {}),
    "grpo of TRL": (Target("grpo", "mean"), "prompt_mean", {"bessel": True, "epsilon": 1e-4}),
    "grpo of verl": (Target("grpo", "mean"), "prompt_mean", {"bessel": True, "epsilon": 1e-6}),
    "grpo, expected": (Target("grpo", "mean", known_deviation=True), "prompt_mean", {}),
}
KNOWN_FROM = {"pilot": 8, "cross_fit": 2, "online": 32}
BINS = ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1))


def factor(name: str, p: float, n: int) -> float:
    """Expected gradient of a prompt over its target gradient, with groups of n."""
    target, estimator, options = ROWS[name]
    deviation = np.sqrt(p * (1 - p))
    total = 0.0
    for accepted, chance in enumerate(distributions.binom.pmf(np.arange(n + 1), n, p)):
        rewards = (np.arange(n) < accepted).astype(float)
        ((advantages,), (weights,)) = weigh_rewards(
            [rewards],
            target,
            estimator,
            accept_rates=np.array([p]),
            deviations=np.array([deviation]),
            **options,
        )
        # The score of the logit of p. Its mean over the accepted is 1 - p, over the rejected -p.
        total += chance * float((advantages * weights) @ (rewards - p))
    slope = p * (1 - p)
    return total / slope * {"log_likelihood": p, "grpo": deviation}.get(target.objective, 1.0)


def known_deviations(replicates: int) -> list[dict]:
    """One row for each way of knowing the deviation and each range of accept rates."""
    rng = np.random.default_rng(0)
    rates = 1 / (1 + np.exp(-np.linspace(-1, 1, 96) * np.log(99)))
    target = ROWS["grpo, expected"][0]
    rows = []
    for way, trials in KNOWN_FROM.items():
        drawn = []
        for _ in range(replicates):
            successes = rng.binomial(trials, rates)
            norms = np.where(successes > 0, 1.0, np.nan)
            stats = PromptStats(range(96), np.full(96, trials), successes, norms)
            known = expected_deviations(fit_posterior(stats), target)
            drawn.append(np.sqrt(rates * (1 - rates)) / known)
        for low, high in BINS:
            part = np.array(drawn)[:, (rates > low) & (rates <= high)]
            rows.append(
                {
                    "way": way,
                    "accept_rates": [low, high],
                    "factor": float(part.mean()),
                    "deviation": float(np.sqrt(part.var(0).mean())),
                }
            )
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=0, help="draws (default: none)")
    parser.add_argument("--json", action="store_true", help="print both lists of rows")
    args = parser.parse_args()
    factors = [
        {"estimator": name, "accept_rate": p, "count": n, "factor": factor(name, p, n)}
        for name in ROWS
        for p in RATES
        for n in COUNTS
        if not (name.startswith("order_k") and n < ORDER)
    ]
    known = known_deviations(args.replicates) if args.replicates else []
    if args.json:
        print(json.dumps({"factors": factors, "known_deviations": known}, indent=1))
        return
    columns = [(p, n) for p in RATES for n in COUNTS]
    found = {(r["estimator"], r["accept_rate"], r["count"]): r["factor"] for r in factors}
    table = Table("p, n", *(f"{p:g}, {n}" for p, n in columns))
    for name in ROWS:
        cells = [found.get((name, *column)) for column in columns]
        table.add_row(name, *("-" if cell is None else f"{cell:.2f}" for cell in cells))
    console = Console(width=140)
    console.print(table)
    if known:
        table = Table("deviation from", *(f"p in {low:g} to {high:g}" for low, high in BINS))
        for way in KNOWN_FROM:
            own = [row for row in known if row["way"] == way]
            table.add_row(way, *(f"{r['factor']:.2f}, {r['deviation']:.2f}" for r in own))
        console.print(table)


if __name__ == "__main__":
    main()
