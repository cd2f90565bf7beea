"""What runs show, in a sentence: which arm needs fewer rollouts, or what a single one gained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dibs.allocation.intervals import Interval, number_text, over_seeds
from dibs.report.arms import Arm
from dibs.report.costs import NO_DIFFERENCE
from dibs.report.curves import arm_curve, costs_at
from dibs.report.standings import Standing, Task

_SCORES = {"accuracy": "accuracy", "log_accept_rate": "mean ln p"}
_NAMED = 3
"""Arms of one verdict that a sentence names; the table has the others."""


def verdict_lines(tasks: Sequence[Task]) -> list[str]:
    """Return a line for each task: the comparison of its arms, or what its only arm gained."""
    lines = []
    for task in tasks:
        line = comparison_line(task) if len(task.arms) > 1 else gain_line(task.arms[0])
        lines.append(f"{task.name}: {line}" if len(tasks) > 1 else line)
    return lines


def gain_line(arm: Arm) -> str:
    """Say what an arm gained in held-out accuracy, from what to what, and with how many rollouts."""
    curve = arm_curve(arm, "steps")
    spent = costs_at(arm, int(curve.x[-1] if len(curve.x) else arm.runs[0].metrics[-1]["step"]))
    known = np.isfinite(spent["rollouts"])
    rollouts = f"{spent['rollouts']:,.0f} rollouts" if known else "an unknown number of rollouts"
    if spent["pilot_rollouts"] > 0:
        rollouts += f", {spent['pilot_rollouts']:,.0f} of them pilots"
    if len(curve.x) < 2:
        return f"Nothing to tell yet: there are not two evaluations with a score after {rollouts}."
    gain = _gain(arm)
    way = (
        f"held-out accuracy went from {curve.mean[0]:.3f} to {curve.mean[-1]:.3f}"
        f"{_ends(curve.low[-1], curve.high[-1], '.3f')} with {rollouts}"
    )
    if gain.low is None or gain.high is None:
        return f"Accuracy changed by {gain.value:+.3f}: {way}."
    if gain.low <= 0 <= gain.high:
        return f"No gain is shown, {gain.value:+.3f}{_ends(gain.low, gain.high, '+.3f')}: {way}."
    low, high = sorted((abs(gain.low), abs(gain.high)))
    verb = "rose" if gain.low > 0 else "fell"
    return f"Accuracy {verb} by {abs(gain.value or 0):.3f}{_ends(low, high, '.3f')}: {way}."


def comparison_line(task: Task) -> str:
    """Say which arms of a task need fewer rollouts than the reference, or more, or neither."""
    reference = task.short(task.standings[0].reference)
    others = [each for each in task.standings if each.arm is not each.reference]
    faster = [each for each in others if each.verdict == "faster"]
    slower = [each for each in others if each.verdict == "slower"]
    unclear = [each for each in others if each.verdict == NO_DIFFERENCE]
    single = [each for each in others if each.verdict is None and each.value is not None]
    unknown = [each for each in others if each.value is None]
    to_score = f" to the same held-out {_SCORES[task.score]}"
    sentences = []
    for found in (faster, slower):
        if found:
            sentences.append(f"{_listed(task, found, reference)}{to_score}")
            to_score = ""
    corrected = f", corrected for {task.corrected_for} comparisons" * (task.corrected_for > 1)
    for found, why in ((unclear, corrected), (single, ", with a single seed each")):
        if found:
            sentences.append(
                f"No difference from {reference} is shown{why}: {_listed(task, found)}{to_score}"
            )
            to_score = ""
    if unknown:
        names = _enumerated([task.short(each.arm) for each in unknown[:_NAMED]], len(unknown))
        sentences.append(f"{names} cannot be compared: both reached no score at a known cost")
    if not task.equal_updates:
        sentences.append("Optimizer updates differ between the arms")
    return ". ".join(sentences) + "."


def _listed(task: Task, found: Sequence[Standing], reference: str = "") -> str:
    """Name arms, the one that stands out most first, and how many times fewer or more each needs.

    ``ours needs 3.02 times fewer rollouts than uniform (95%: 1.49 to 6.10), 64x2 1.65 (...)``; without
    a reference: ``ours 3.02 times fewer rollouts (95%: 1.49 to 6.10), 64x2 1.65 times more (...)``.
    """
    names, factors = zip(*((task.short(s.arm), _factor(s)) for s in _strongest(found)), strict=True)
    needs, than = (" needs", f" than {reference}") if reference else ("", "")
    mixed = len({what for _, what, _ in factors}) > 1
    value, what, ends = factors[0]
    named = [f"{names[0]}{needs} {value}{what} rollouts{than}{ends}"]
    for name, (value, what, ends) in zip(names[1:], factors[1:], strict=True):
        named.append(f"{name} {value}{what * mixed}{ends}")
    return _enumerated(named, len(found))


def _strongest(found: Sequence[Standing]) -> list[Standing]:
    return sorted(found, key=lambda each: -abs(np.log(each.value or 1)))[:_NAMED]


def _enumerated(named: Sequence[str], count: int) -> str:
    """``a, b and c``, or ``a, b, c and 4 more``."""
    shown = [*named, *([f"{count - len(named)} more"] if count > len(named) else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _factor(standing: Standing) -> tuple[str, str, str]:
    """``3.02``, `` times fewer`` and `` (95%: 1.49 to 6.10)``; `` times more`` where it needs more."""
    fewer = standing.fewer
    assert fewer is not None
    assert fewer.value is not None
    if not 0 < fewer.value < 1:
        return number_text(fewer.value), " times fewer", _ends(fewer.low, fewer.high, ",.2f")
    low, high = (1 / x if x else None for x in (fewer.high, fewer.low))
    return number_text(1 / fewer.value), " times more", _ends(low, high, ",.2f")


def _ends(low: float | None, high: float | None, form: str) -> str:
    if low is None or high is None or np.isnan([low, high]).any():
        return ""
    return f" (95%: {low:{form}} to {high:{form}})"


def _gain(arm: Arm) -> Interval:
    """The rise of held-out accuracy, with the interval over seeds.

    Of one seed the interval is over prompts, and both evaluations are taken as independent. They share
    their prompts, so the interval is rather too wide.
    """
    curve = arm_curve(arm, "steps")
    value = float(curve.mean[-1] - curve.mean[0])
    if len(arm.runs) > 1:
        each = [arm_curve(Arm(arm.name, [run], arm.look), "steps") for run in arm.runs]
        first, last = curve.x[0], curve.x[-1]
        gains = [float((one.mean[one.x == last] - one.mean[one.x == first])[0]) for one in each]
        _, low, high = over_seeds(np.array(gains))
    else:
        margins = (curve.high - curve.low)[[0, -1]] / 2
        low, high = value + np.array([-1, 1]) * np.hypot(*margins)
    known = np.isfinite([low, high]).all()
    return Interval(value, float(low) if known else None, float(high) if known else None)
