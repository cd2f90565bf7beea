"""Two models on the same prompts with the same seeds, and how much better the second one is.

Both draw completion k of a prompt by the same random numbers. Scores are compared prompt by prompt, so
what makes a prompt hard for both models does not widen the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dibs.allocation.intervals import paired_interval
from dibs.config import Config
from dibs.data.arithmetic import TASKS
from dibs.files import write_json
from dibs.model.pretrained import check_source
from dibs.runs.console import View
from dibs.runs.evaluation import SCORES, clock_of, evaluated, scores_of

_ENDS = ("", "_low", "_high")


def run_pair(
    configs: tuple[Config, Config],
    sources: Sequence[str],
    k_of_samples: tuple[int, int],
    out: Path | None,
    view: View,
) -> dict[str, Any]:
    """Evaluate two policies in turn, and return both results, ``a`` and ``b``, and ``difference``.

    ``out`` gets a folder of each, and ``difference.json``. Raises InputError as
    :func:`.run_evaluation` does, for a second model that is not there before the first is evaluated.
    """
    for config in configs:
        if config.policy.model not in TASKS:
            check_source(config.policy)
    folders = [None if out is None else out / name for name in ("a", "b")]
    clock = clock_of(folders[0])
    first, second = (
        evaluated(config, sources, k_of_samples, folder, clock, view)
        for config, folder in zip(configs, folders, strict=True)
    )
    rows = [
        {"benchmark": source}
        | difference(
            (first.records[source], second.records[source]),
            (one["too_long"], other["too_long"]),
            k_of_samples[0],
        )
        for source, one, other in zip(
            sources, first.result["benchmarks"], second.result["benchmarks"], strict=True
        )
    ]
    found = {"benchmarks": rows, "average": average_difference(rows)}
    if out is not None:
        write_json(out / "difference.json", found)
    return {"a": first.result, "b": second.result, "difference": found}


def difference(
    records: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    too_long: tuple[int, int],
    k: int,
) -> dict[str, Any]:
    """By how much the second model's scores exceed the first one's, with 95% intervals.

    A prompt that is too long for a model is not solved by it. A prompt on which a model has no verdict
    is left out.

    Args:
        records: of every prompt that each model was asked; see :class:`.Evaluated`.
        too_long: prompts that each model could not be asked.

    Returns:
        ``prompts``: compared ones. ``unjudged``: those left out. ``better`` and ``worse``: prompts on
        which the second model has more, and fewer, accepted completions in proportion. ``avg``, ``pass``
        and ``maj``: differences, with ``_low`` and ``_high``; None where no prompt is compared.
    """
    one, other = ({record["prompt_id"]: record for record in each} for each in records)
    gained, lost = len(other.keys() - one.keys()), len(one.keys() - other.keys())
    neither = max(min(too_long[0] - gained, too_long[1] - lost), 0)
    pairs, unjudged = [], 0
    for prompt_id in dict.fromkeys([*one, *other]):
        found = [each.get(prompt_id) for each in (one, other)]
        if any(record is not None and not record["judged"] for record in found):
            unjudged += 1
            continue
        pairs.append([_scores(record, k) for record in found])
    pairs += [[_scores(None, k)] * 2] * neither
    row: dict[str, Any] = {"prompts": len(pairs), "unjudged": unjudged}
    for name in SCORES:
        d = np.array([second[name] - first[name] for first, second in pairs])
        if name == "avg":
            row |= {"better": int((d > 0).sum()), "worse": int((d < 0).sum())}
        ends = (float(d.mean()), *paired_interval(d)) if len(d) else (None, None, None)
        row |= {f"{name}{end}": value for end, value in zip(_ENDS, ends, strict=True)}
    return row


def _scores(record: Mapping[str, Any] | None, k: int) -> dict[str, float]:
    """The scores of a prompt; none is solved that was not asked."""
    return dict.fromkeys(SCORES, 0.0) if record is None else scores_of(record, k)


def average_difference(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean over benchmarks, each counting the same, with the interval of independent benchmarks.

    The distances to the ends of the benchmarks' intervals add up like standard errors. None where a
    benchmark has no difference.
    """
    average: dict[str, float | None] = {}
    for name in SCORES:
        if any(row[name] is None for row in rows):
            average |= dict.fromkeys((f"{name}{end}" for end in _ENDS), None)
            continue
        value, low, high = (np.array([row[f"{name}{end}"] for row in rows]) for end in _ENDS)
        mean = float(value.mean())
        below, above = (float(np.hypot.reduce(apart)) for apart in (value - low, high - value))
        average[name] = mean
        average[f"{name}_low"] = max(mean - below / len(rows), -1.0)
        average[f"{name}_high"] = min(mean + above / len(rows), 1.0)
    return average
