"""How the verifiers judge cases whose right verdict is known: false accepts and rejects by kind.

A case is a row ``{"completion", "answer", "expected", "kind"}``, perhaps with ``verifier`` (math if
missing) and ``answer_from`` (boxed if missing). A false accept is a case that should not be accepted and
was; a false reject is one that should be accepted and was not, for whatever reason.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dibs.config import VerifyConfig
from dibs.rollouts.verify.verifiers import build_verifier

Case = dict[str, Any]


def case_rates(path: Path) -> dict[str, Any]:
    """The rates over all cases of a file, by kind, and the cases that are judged wrongly."""
    cases: list[Case] = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    for case, verdict in zip(cases, judged_cases(cases), strict=True):
        case["accepted"], case["reason"] = verdict.status == "accepted", verdict.reason
        case["status"] = verdict.status
    kinds: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        kinds[case["kind"]].append(case)
    return {
        "all": rates(cases),
        "kinds": {kind: rates(rows) for kind, rows in sorted(kinds.items())},
        "wrong": [case for case in cases if case["accepted"] != case["expected"]],
    }


def judged_cases(cases: list[Case]) -> list[Any]:
    """A verdict for each case, in order; each pair of verifier and place of the answer has a pool."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for n, case in enumerate(cases):
        groups[case.get("verifier", "math"), case.get("answer_from", "boxed")].append(n)
    verdicts: list[Any] = [None] * len(cases)
    for (verifier, place), numbers in groups.items():
        config = VerifyConfig(verifier=verifier, answer_from=place, workers=2)
        with closing(build_verifier(config, "")) as pool:
            items = [(cases[n]["answer"], cases[n]["completion"]) for n in numbers]
            for n, verdict in zip(numbers, pool.verdicts(items), strict=True):
                verdicts[n] = verdict
    return verdicts


def rates(cases: list[Case]) -> dict[str, Any]:
    """Counts and rates of false accepts and false rejects; a rate is None where there is no case."""
    right = [case for case in cases if case["expected"]]
    wrong = [case for case in cases if not case["expected"]]
    accepts = sum(case["accepted"] for case in wrong)
    rejects = sum(not case["accepted"] for case in right)
    return {
        "wrong": len(wrong),
        "false_accepts": accepts,
        "false_accept_rate": accepts / len(wrong) if wrong else None,
        "right": len(right),
        "false_rejects": rejects,
        "false_reject_rate": rejects / len(right) if right else None,
    }


def print_rates(result: dict[str, Any]) -> None:
    """A table of all kinds, and a line for each case that is judged wrongly."""
    table = Table("kind", "wrong", "false accepts", "right", "false rejects")
    for kind, row in {**result["kinds"], "all": result["all"]}.items():
        table.add_row(
            kind,
            str(row["wrong"]),
            _share(row["false_accepts"], row["false_accept_rate"]),
            str(row["right"]),
            _share(row["false_rejects"], row["false_reject_rate"]),
        )
    console = Console()
    console.print(table)
    for case in result["wrong"]:
        what = "false accept" if case["accepted"] else "false reject"
        line = f"{what}: {case['answer']!r} by {case['completion'][-80:]!r}: {case['reason']}"
        console.print(line, markup=False, highlight=False)


def _share(count: int, rate: float | None) -> str:
    return str(count) if not rate else f"{count} ({rate:.1%})"
