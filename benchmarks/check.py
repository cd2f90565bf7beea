"""Runs CPU benchmarks anew and lists what became slower, by ratios alone.

A ratio of two ways that one run compares means the same on any machine; seconds do not. Each fresh ratio
is compared with the kept one in `benchmarks/results/`. One that is worse by more than `--tolerance` is a
regression. What runs, and which keys are ratios, is in `BENCHMARKS` below.

    python benchmarks/check.py [--json]                all of them
    python benchmarks/check.py sampling allocation     some
    python benchmarks/check.py --fresh DIR             keeps fresh results; runs what DIR lacks

Exit status: 0 where no ratio is worse, 1 where one is, 2 where none is but a benchmark failed or nothing
could be compared. A benchmark whose environment or data are not at hand is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Benchmark:
    """How a kept result was made, and which of its numbers are compared.

    ``ratios``: which way is better, by key; numbers and names of a path are joined by dots. ``options``:
    of the command; ``{out}`` stands for the file that it writes, where it does not print its result.
    ``files``: what it reads from the working directory. ``environment``: a folder of the repository that
    it needs.
    """

    ratios: Mapping[str, str]
    options: str = "--json"
    files: tuple[str, ...] = ()
    environment: str | None = None


_DATA = ("math500.jsonl", "aime24.jsonl", "amc23.jsonl")
BENCHMARKS = {
    "allocation": Benchmark(
        {"timings.0.over_sort": LOWER, "timings.1.over_sort": LOWER}, "--json --output {out}"
    ),
    "grad_norms": Benchmark(
        {
            "exact_over_floor": LOWER,
            "last_layer_over_floor": LOWER,
            "exact_speedup_over_one_at_a_time": HIGHER,
        }
    ),
    "held_prompts": Benchmark(
        {"shapes.embedded.speedup": HIGHER, "shapes.long_prompts.speedup": HIGHER}
    ),
    "logprobs": Benchmark({"memory_ratio": LOWER}),
    "online_overhead": Benchmark(
        {
            "shapes.embedded.update_cpu_seconds_over_uniform": LOWER,
            "shapes.long_prompts.update_cpu_seconds_over_uniform": LOWER,
        },
        "--arms update --json",
    ),
    "sampling": Benchmark({"cases.0.speedup": HIGHER, "cases.1.speedup": HIGHER}),
    "shared_prefixes": Benchmark(
        {"shapes.long.update_speedup": HIGHER, "shapes.short.update_speedup": HIGHER}
    ),
    "step": Benchmark(
        {"speedup_vs_trl": HIGHER, "speedup_vs_trl_long_prompts": HIGHER}, environment=".venv-trl"
    ),
    "variance_cost": Benchmark(
        {
            "meter_over_plain_pass_cpu": LOWER,
            "meter_without_baseline_over_plain_pass_cpu": LOWER,
        },
        "--prompts 8 --threads 1 --json",
    ),
    "verifier": Benchmark(
        {"speedup": HIGHER, "speedup_wrong": HIGHER, "speedup_first": HIGHER},
        " ".join(["--json", *(f"--data {name}" for name in _DATA)]),
        files=_DATA,
    ),
    "warm_start": Benchmark({"speedup": HIGHER}, "--seeds 3 --json"),
}


@dataclass(frozen=True)
class Comparison:
    """A kept and a fresh ratio; ``worse``: by what share the fresh one is worse, below 0 if better."""

    benchmark: str
    key: str
    better: str
    kept: float
    fresh: float
    worse: float
    regression: bool


@dataclass
class Findings:
    """What was compared, and why something was not."""

    compared: list[Comparison] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def regressions(self) -> list[Comparison]:
        """Ratios that are worse by more than is tolerated."""
        return [each for each in self.compared if each.regression]

    @property
    def exit_status(self) -> int:
        """1 after a regression, else 2 after a failure or without any comparison, else 0."""
        if self.regressions:
            return 1
        return 2 if self.failed or not self.compared else 0


class FailedError(Exception):
    """A benchmark did not give a result; the message says why."""


def at(result: Any, key: str) -> float:
    """The number at a path of names and positions. Raises FailedError where there is none."""
    for part in key.split("."):
        try:
            result = result[int(part)] if isinstance(result, list) else result[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise FailedError(f"the result has no {key}") from None
    if isinstance(result, bool) or not isinstance(result, int | float) or not result > 0:
        raise FailedError(f"{key} is {result!r}, which is no ratio")
    return float(result)


def compare(
    name: str, ratios: Mapping[str, str], kept: Any, fresh: Any, tolerance: float
) -> list[Comparison]:
    """Every ratio of a benchmark. Raises FailedError where a result lacks one."""
    found = []
    for key, better in ratios.items():
        before, now = at(kept, key), at(fresh, key)
        worse = 1 - now / before if better == HIGHER else now / before - 1
        found.append(Comparison(name, key, better, before, now, worse, worse > tolerance))
    return found


def missing(benchmark: Benchmark) -> str | None:
    """Why a benchmark cannot run here; None where it can."""
    absent = [name for name in benchmark.files if not Path(name).is_file()]
    if absent:
        return f"there is no {', '.join(absent)} in the working directory"
    there = benchmark.environment
    if there is not None and not (ROOT / there / "bin/python").is_file():
        return f"there is no {there}; `make test{there.removeprefix('.venv')}` builds it"
    return None


def run(name: str, benchmark: Benchmark, out: Path) -> None:
    """Write the fresh result of a benchmark to ``out``. Raises FailedError."""
    partial = out.with_suffix(".partial")
    writes = "{out}" in benchmark.options
    words = [word.replace("{out}", str(partial)) for word in shlex.split(benchmark.options)]
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
        raise FailedError(f"exit status {done.returncode}: {last}")
    if not writes:
        partial.write_text(done.stdout, encoding="utf-8")
    partial.replace(out)  # so that a result that is there is whole


def read(path: Path) -> Any:
    """A result. Raises FailedError where the file holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FailedError(f"{path} cannot be read: {error}") from None


def check(
    names: Sequence[str], kept: Path, fresh: Path, tolerance: float, console: Console
) -> Findings:
    """Run what has no fresh result yet, and compare."""
    found = Findings()
    for number, name in enumerate(names, 1):
        benchmark, result = BENCHMARKS[name], fresh / f"{name}.json"
        reason = None if result.is_file() else missing(benchmark)
        if not (kept / f"{name}.json").is_file():
            reason = f"there is no {kept / f'{name}.json'}"
        if reason is not None:
            found.skipped[name] = reason
            console.print(f"{name} ({number} of {len(names)}): skipped, {reason}", highlight=False)
            continue
        console.print(f"{name} ({number} of {len(names)})", highlight=False)
        started = time.monotonic()
        try:
            if not result.is_file():
                run(name, benchmark, result)
            found.compared += compare(
                name,
                benchmark.ratios,
                read(kept / f"{name}.json"),
                read(result),
                tolerance,
            )
        except FailedError as error:
            found.failed[name] = str(error)
        outcome = found.failed.get(name, "done")
        console.print(f"  {outcome}, {time.monotonic() - started:.0f} s", highlight=False)
    return found


def print_findings(found: Findings) -> None:
    """For people: all ratios, regressions marked, and what could not be compared."""
    console = Console()
    table = Table("benchmark", "ratio", "better", "kept", "fresh", "worse by", "")
    for each in found.compared:
        mark = "[bold red]regression[/]" if each.regression else ""
        table.add_row(
            *(each.benchmark, each.key, each.better, f"{each.kept:.3g}", f"{each.fresh:.3g}"),
            f"{each.worse:+.0%}",
            mark,
        )
    console.print(table)
    for title, reasons in (("skipped", found.skipped), ("failed", found.failed)):
        for name, reason in reasons.items():
            console.print(f"{title}: {name}: {reason}", highlight=False, markup=False)
    if found.regressions:
        names = ", ".join(f"{each.benchmark} {each.key}" for each in found.regressions)
        console.print(f"worse than the kept results: {names}", highlight=False)


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--kept", type=Path, default=FOLDER / "results", help="kept results")
    parser.add_argument("--fresh", type=Path, metavar="DIR", help="where fresh results are kept")
    parser.add_argument(
        "--tolerance", type=float, default=0.15, help="share by which a ratio may be worse"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args(words)
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]}; known: {', '.join(BENCHMARKS)}")
    if not args.kept.is_dir():
        parser.error(f"--kept {args.kept} is no folder")
    if args.fresh is not None and args.fresh.exists() and not args.fresh.is_dir():
        parser.error(f"--fresh {args.fresh} is no folder")
    if not args.tolerance >= 0:
        parser.error(f"--tolerance {args.tolerance} must be 0 or more")
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory() as temporary:
        fresh = args.fresh or Path(temporary)
        fresh.mkdir(parents=True, exist_ok=True)
        names = args.names or list(BENCHMARKS)
        found = check(names, args.kept, fresh, args.tolerance, progress)
    if args.json:
        named = [f"{each.benchmark} {each.key}" for each in found.regressions]
        result = {"exit_status": found.exit_status, "regressions": named, **asdict(found)}
        print(json.dumps(result, indent=1))
    else:
        print_findings(found)
    return found.exit_status


if __name__ == "__main__":
    sys.exit(main())
