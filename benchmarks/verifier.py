"""The verifier against plain calls of math-verify, on the same completions, in one run.

Completions are the rows' solutions (or a line of text) that end in a boxed answer: for every other row
the gold one, for the rest another row's. ``plain`` calls math-verify's parse and verify with their
defaults in a loop; ``pool`` is the verifier with 2 workers, started beforehand. Each is timed in turn,
``--rounds`` times; medians. ``speedup`` is over all, ``speedup_wrong`` over wrong answers alone, which
no comparison of texts can shorten; ``speedup_first`` is the first round's, before any gold answer was
parsed. Also: every gold answer against itself and against the next row's.

    python benchmarks/verifier.py --data math500.jsonl [--data aime24.jsonl ...] [--json]

With ``--cases`` it prints the false accepts and false rejects on cases whose verdict is known, by kind:

    python benchmarks/verifier.py --cases cases.jsonl [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from math_verify import parse, verify
from rich.console import Console
from rich.table import Table
from shared import positive
from verifier_cases import case_rates, print_rates

from dibs.config import DataConfig, VerifyConfig
from dibs.data.questions import read_rows
from dibs.rollouts.verify.verifiers import build_verifier
from dibs.types import InputError

Items = list[tuple[str, str]]


def rows_of(path: Path) -> list[dict]:
    """Rows with an answer as text."""
    rows = read_rows(DataConfig(), str(path), "train")
    return [dict(row) for _, row in rows if not isinstance(row, InputError)]


def completions(rows: list[dict]) -> Items:
    """Gold answers with completions, right and wrong in turn."""
    items = []
    for i, row in enumerate(rows):
        answer = row["answer"] if i % 2 else rows[(i + 1) % len(rows)]["answer"]
        text = f"{row.get('solution', 'We compute.')}\n\nSo the answer is $\\boxed{{{answer}}}$."
        items.append((str(row["answer"]), text))
    return items


def plain(items: Items) -> list[bool]:
    """What a script would do."""
    return [verify(parse(f"${gold}$"), parse(text)) for gold, text in items]


def seconds(run: Callable[[Items], Any], items: Items) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run(items)
    return time.perf_counter() - started


def timed(
    pooled: Callable[[Items], list[str]], items: Items, rounds: int
) -> dict[str, list[float]]:
    """Seconds of the plain loop and of the verifier in every round, over all items and wrong ones."""
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        for what, part in (("all", items), ("wrong", items[::2])):
            spent.setdefault(f"plain {what}", []).append(seconds(plain, part))
            spent.setdefault(f"pool {what}", []).append(seconds(pooled, part))
    return spent


def gold_verdicts(pooled: Callable[[Items], list[str]], rows: list[dict]) -> dict[str, Any]:
    """How every gold answer of a file is judged against itself and against the next row's."""
    answers = [str(row["answer"]) for row in rows]
    pairs = list(zip(answers, [*answers[1:], *answers[:1]], strict=True))
    own = pooled([(a, f"\\boxed{{{a}}}") for a in answers])
    wrong = [(a, b) for a, b in pairs if a != b]
    other = pooled([(a, f"\\boxed{{{b}}}") for a, b in wrong])
    return {
        "rows": len(rows),
        "accepted": own.count("accepted"),
        "wrong": len(wrong),
        "rejected": other.count("rejected"),
        "not_rejected": [p for p, s in zip(wrong, other, strict=True) if s != "rejected"],
    }


def print_table(result: dict[str, Any]) -> None:
    """For people."""
    console = Console()
    table = Table("", "items/s", "over plain")
    table.add_row("math-verify, plain loop", f"{result['plain_items_per_second']:.0f}", "1")
    table.add_row(
        "verifier, 2 workers", f"{result['pool_items_per_second']:.0f}", f"{result['speedup']:.2f}"
    )
    table.add_row("  first round", "", f"{result['speedup_first']:.2f}")
    table.add_row("  wrong answers only", "", f"{result['speedup_wrong']:.2f}")
    console.print(table)
    console.print(f"starting the workers took {result['startup_seconds']:.1f} s", highlight=False)
    for name, found in result["gold"].items():
        console.print(
            f"{name}: {found['accepted']} of {found['rows']} gold answers accept themselves; "
            f"{found['rejected']} of {found['wrong']} of the next row's are rejected "
            f"{found['not_rejected'] or ''}",
            highlight=False,
            markup=False,
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="rows with an answer and perhaps a solution; the first file is timed",
    )
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of each way")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--cases", type=Path, metavar="FILE", help="cases with a known verdict")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if args.cases:
        rates = case_rates(args.cases)
        print(json.dumps(rates, indent=1)) if args.json else print_rates(rates)
        return
    if not args.data:
        parser.error("give --data or --cases")
    files = {path.stem: rows_of(path) for path in args.data}
    items = completions(next(iter(files.values())))

    with closing(build_verifier(VerifyConfig(workers=2), "")) as verifier:

        def pooled(part: Items) -> list[str]:
            return [verdict.status for verdict in verifier.verdicts(part)]

        startup = seconds(pooled, [("1", "\\boxed{1}"), ("2", "\\boxed{2}")])
        spent = timed(pooled, items, args.rounds)
        gold = {name: gold_verdicts(pooled, rows) for name, rows in files.items()}

    medians = {name: statistics.median(times) for name, times in spent.items()}
    result = {
        "items": len(items),
        "plain_items_per_second": len(items) / medians["plain all"],
        "pool_items_per_second": len(items) / medians["pool all"],
        "speedup": medians["plain all"] / medians["pool all"],
        "speedup_wrong": medians["plain wrong"] / medians["pool wrong"],
        "speedup_first": spent["plain all"][0] / spent["pool all"][0],
        "startup_seconds": startup,
        "workers": 2,
        "gold": gold,
    }
    print(json.dumps(result, indent=1)) if args.json else print_table(result)


if __name__ == "__main__":
    main()
