"""The bias of 1/p: what each way of knowing the accept rate costs the log-likelihood gradient.

The estimate of a prompt is ``(1/n) sum_j r_j s_j / p``; by whatever p is known, its expectation is the
true gradient times a factor, here the mean of ``X = (1/n) sum_j r_j / p_known`` over 5,000 draws. 1 is
unbiased. 96 prompts with accept rates from 0.01 to 0.99, n = 8 fresh completions each:

    pilot             posterior mean from 8 pilots of the prompt, the batch's prior included
    cross_fit         the same from 2, as each stream of 4 pilots knows it
    online            the same from 32 earlier completions
    self_normalized   p is the accepted share of the n themselves: 1/|D_i|
    until_k_accepted  trials / k from drawing until k = 2 were accepted: unbiased for 1/p, at 2/p draws

``bias`` is mean X - 1, ``deviation`` the standard deviation of X, ``rollouts`` the cost of a prompt.

    python benchmarks/plug_in.py [--json]
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dibs.allocation.posterior import fit_posterior
from dibs.types import PromptStats

PROMPTS, FRESH, REPLICATES, UNTIL = 96, 8, 5000, 2
KNOWN_FROM = {"pilot": 8, "cross_fit": 2, "online": 32}
BINS = ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1))


def measure(replicates: int) -> list[dict]:
    """One row for each way and range of accept rates."""
    rng = np.random.default_rng(0)
    logits = np.linspace(-1, 1, PROMPTS) * np.log(99)
    rates = 1 / (1 + np.exp(-logits))
    drawn: dict[str, list[np.ndarray]] = {}
    for _ in track(range(replicates), "draws", console=Console(stderr=True)):
        share = rng.binomial(FRESH, rates) / FRESH
        for name, trials in KNOWN_FROM.items():
            successes = rng.binomial(trials, rates)
            norms = np.where(successes > 0, 1.0, np.nan)
            stats = PromptStats(range(PROMPTS), np.full(PROMPTS, trials), successes, norms)
            drawn.setdefault(name, []).append(share / fit_posterior(stats).accept_rate)
        drawn.setdefault("self_normalized", []).append((share > 0).astype(float))
        trials = UNTIL + rng.negative_binomial(UNTIL, rates)
        drawn.setdefault("until_k_accepted", []).append(share * trials / UNTIL)
    cost = {
        "pilot": np.full(PROMPTS, 8 + FRESH),
        "cross_fit": np.full(PROMPTS, FRESH),
        "online": np.full(PROMPTS, FRESH),
        "self_normalized": np.full(PROMPTS, FRESH),
        "until_k_accepted": UNTIL / rates + FRESH,
    }
    rows = []
    for name, values in drawn.items():
        x = np.array(values)
        for low, high in BINS:
            chosen = (rates > low) & (rates <= high)
            part = x[:, chosen]
            rows.append(
                {
                    "way": name,
                    "accept_rates": [low, high],
                    "bias": float(part.mean() - 1),
                    "bias_error": float(part.mean(1).std() / np.sqrt(len(part))),
                    "deviation": float(np.sqrt(part.var(0).mean())),
                    "rollouts": float(cost[name][chosen].mean()),
                }
            )
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="draws (default: 5000)")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    args = parser.parse_args()
    rows = measure(args.replicates)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        "1/p from", *(f"p in {low:g} to {high:g}: bias, deviation, rollouts" for low, high in BINS)
    )
    for name in dict.fromkeys(row["way"] for row in rows):
        table.add_row(
            name,
            *(
                f"{row['bias']:+.3f} +- {row['bias_error']:.3f}, {row['deviation']:.2f}, "
                f"{row['rollouts']:.0f}"
                for row in rows
                if row["way"] == name
            ),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
