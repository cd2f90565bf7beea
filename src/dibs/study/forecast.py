"""How much a comparison will draw, and how long it may take at the pace of its finished runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dibs.config import Config
from dibs.study.matrix import Study
from dibs.types import counted


@dataclass(frozen=True)
class Forecast:
    """``rollouts``: of all runs, pilots counted and evaluations not; None where budgets are
    in tokens, or rules for rounds draw as much as they need.

    ``left``: of the runs that have not finished. ``rollouts_per_second``: of those that have, and where
    none has, of the short runs of :func:`timing_command`; None where there are none either.
    """

    runs: int
    finished: int
    rollouts: int | None
    left: int | None
    rollouts_per_second: float | None

    def sentence(self, jobs: int, timing: str) -> str:
        """What the runs draw and take, with ``jobs`` of them side by side.

        Args:
            timing: the command that makes short runs.
        """
        drawn = "" if self.rollouts is None else f", {counted(self.rollouts, 'rollout')}"
        text = (
            f"{counted(self.runs, 'run')}{drawn} (pilots counted, evaluations not); "
            f"{self.finished} finished."
        )
        if self.left == 0:
            return text
        if self.left is None:
            return f"{text} How long they take cannot be foretold, as what they draw is not fixed."
        if self.rollouts_per_second is None:
            return (
                f"{text} How long they take is not known before one has finished. To time a short run "
                f"of each arm, and then ask again: {timing}"
            )
        hours = self.left / self.rollouts_per_second / jobs / 3600
        took = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
        if not self.finished:
            return f"{text} They take about {took} or less at the pace of short ones, {jobs} at a time."
        return f"{text} The others take about {took} at the pace of those, {jobs} at a time."


def forecast(study: Study) -> Forecast:
    """Count what a study draws, and look how fast those of its runs were that have finished."""
    runs = list(_runs(study))
    drawn = [_rollouts(configs[0]) for configs in runs]
    paces, left = [], 0
    for configs, rollouts in zip(runs, drawn, strict=True):
        found = [_pace(config.output_dir / "summary.json") for config in configs]
        known_pace = next((pace for pace in found if pace is not None), None)
        if known_pace is None:
            left += rollouts or 0
        else:
            paces.append(known_pace)
    known = None not in drawn
    rates = paces
    if not paces:
        short = map(_pace, _timing_folder(study).rglob("summary.json"))
        rates = [pace for pace in short if pace is not None]
    return Forecast(
        runs=len(runs),
        finished=len(paces),
        rollouts=sum(each or 0 for each in drawn) if known else None,
        left=left if known else None,
        rollouts_per_second=sum(rates) / len(rates) if rates else None,
    )


def timing_command(study: Study, paths: Sequence[Path], overrides: Mapping[str, str]) -> str:
    """The command that makes a run of a tenth of the steps of every arm, in a folder of their own.

    Args:
        paths, overrides: configurations and keys of the study, as the command line gave them.
    """
    steps = max(cell.config(0).train.steps for cell in study.cells)
    short = {
        "train.steps": str(max(steps // 10, 1)),
        "compare.seeds": "[0]",
        "compare.learning_rates": "[]",
        "compare.output_dir": str(_timing_folder(study)),
    }
    keys = [f"--{key}={value}" for key, value in {**overrides, **short}.items()]
    return shlex.join(["dibs", "compare", *map(str, paths), *keys])


def _timing_folder(study: Study) -> Path:
    """Beside the folder of the study, so that no report takes its runs for those of the study."""
    folder = study.options.output_dir
    return folder.with_name(f"{folder.name}-timing")


def _runs(study: Study) -> Iterator[list[Config]]:
    """The configurations that each run may get: which learning rate is chosen, is not known yet."""
    options = study.options
    for cell in study.cells:
        for rate in study.tuning_rates:
            yield from ([cell.tuning(seed, rate)] for seed in options.tuning_seeds)
        rates = options.learning_rates or (None,)
        yield from ([cell.config(seed, rate) for rate in rates] for seed in options.seeds)


def _rollouts(config: Config) -> int | None:
    """Training completions and pilots of a run; None for a budget of tokens, and for rounds."""
    if config.budget is None or config.allocate.rounds is not None:
        return None
    pilots = config.estimate.num_pilots if config.estimate.mode == "pilot" else 0
    return config.train.steps * (config.budget + pilots * config.train.prompts_per_step)


def _pace(summary: Path) -> float | None:
    """Rollouts a second of a finished run; None where there is no whole summary."""
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
        return float(found["rollouts"]) / float(found["wall_seconds"])
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return None
