"""How much a comparison will draw, and how long it may take at the pace of its finished runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dibs.config import Config
from dibs.study.matrix import Study


@dataclass(frozen=True)
class Forecast:
    """``rollouts``: of all runs, pilots counted and evaluations not; None where budgets are
    in tokens, or rules for rounds draw as much as they need.

    ``left``: of the runs that have not finished. ``rollouts_per_second``: of those that have; None where
    there is none.
    """

    runs: int
    finished: int
    rollouts: int | None
    left: int | None
    rollouts_per_second: float | None

    def sentence(self, jobs: int) -> str:
        """What the runs draw and take, with ``jobs`` of them side by side."""
        drawn = "" if self.rollouts is None else f", {self.rollouts:,} rollouts"
        text = (
            f"{self.runs} runs{drawn} (pilots counted, evaluations not); {self.finished} finished."
        )
        if self.left == 0:
            return text
        if self.left is None or self.rollouts_per_second is None:
            return (
                f"{text} How long they take is not known before one has finished; ask again then."
            )
        hours = self.left / self.rollouts_per_second / jobs / 3600
        took = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
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
    return Forecast(
        runs=len(runs),
        finished=len(paces),
        rollouts=sum(each or 0 for each in drawn) if known else None,
        left=left if known else None,
        rollouts_per_second=sum(paces) / len(paces) if paces else None,
    )


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
