"""What a comparison of shapes recommends: the shape, the keys that make it, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dibs.allocation.variance import fewer_steps
from dibs.config import Config

_EQUAL = {"completions": "rollouts", "tokens": "cost in tokens"}
"""What shapes have in common, by the unit of the budget."""
_CLEARLY = 1.1
"""A way is recommended if it is surely so many times less noisy than the configured one."""


def completions_of(config: Config) -> int:
    """Of each prompt of the configured shape."""
    if config.budget is None:
        return config.allocate.num_generations
    return config.budget // config.train.prompts_per_step


def recommended(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that is surely less noisy than the configured shape; None if none is.

    A simpler one, which is uniform, is taken where it is nearly as good.
    """
    simple = max((row for row in rows if row["rule"] == "uniform"), key=_value)
    best = max(rows, key=_value)
    if _surely(best) < _CLEARLY and _surely(simple) < _CLEARLY:
        return None
    if _surely(simple) >= _CLEARLY and _value(simple) > 0.9 * _value(best):
        return simple
    return best


def recommended_keys(best: dict[str, Any], config: Config) -> dict[str, dict[str, Any]]:
    """The keys, by section, that make steps as a row of the report says, and draw no pilots."""
    uniform = best["rule"] == "uniform"
    measures = (
        not uniform
        or config.weighs_by_statistics
        or config.allocate.budget_unit == "tokens"
        or config.estimate.grad_norm == "update"
    )
    allocate: dict[str, Any] = {"allocator": "uniform" if uniform else "min_variance"}
    estimate = {"mode": "online" if measures else "none", "interval": 1}
    if best["rule"] == "pool":
        select = {"pool": "all", "group": best["completions"]}
        return {"select": select, "allocate": allocate, "estimate": estimate}
    return {
        "train": {"prompts_per_step": best["prompts"]},
        "select": {"pool": None, "group": None},
        "allocate": {"num_generations": best["completions"], **allocate},
        "estimate": estimate,
    }


def advice(
    best: dict[str, Any] | None, config: Config, noise_over_square: float | None = None
) -> str:
    """What to change in the configuration that was measured, and how many steps that is worth."""
    equal = _EQUAL[config.allocate.budget_unit]
    own = f"{config.train.prompts_per_step} x {completions_of(config)}"
    if best is None:
        return (
            f"Nothing is clearly less noisy than {own} at the same {equal}; measure more "
            "prompts (variance.prompts) to be surer."
        )
    gain = best["gain"]
    worth = "" if noise_over_square is None else _worth(_value(best), noise_over_square)
    return (
        f"{_changes(best, config)}: {gain['value']:.2g} ({gain['low']:.2g}-{gain['high']:.2g}) times "
        f"less noisy than uniform {own} at the same {equal}.{worth}"
    )


def _changes(best: dict[str, Any], config: Config) -> str:
    """The recommended keys whose values are not those of the configuration."""
    keys = [
        f"{section}.{key} {'null' if value is None else value}"
        for section, values in recommended_keys(best, config).items()
        for key, value in values.items()
        if value != getattr(getattr(config, section), key)
    ]
    *others, last = keys or ["the configuration as it is"]
    return f"Use {', '.join(others)}{' and ' if others else ''}{last}"


def _worth(gain: float, noise_over_square: float) -> str:
    """A sentence: how many times fewer steps that is."""
    fewer = fewer_steps(gain, noise_over_square)
    if fewer < _CLEARLY:
        return " It will hardly show: an update's noise is small against its gradient."
    much = "drowns"
    if np.isfinite(noise_over_square):
        digits = ".2g" if noise_over_square < 10 else ",.0f"
        much = f"is {noise_over_square:{digits}} times"
    return (
        f" Expect about {fewer:.2g} times fewer steps, since the noise of an update {much} its "
        "gradient."
    )


def _surely(row: dict[str, Any]) -> float:
    return row["gain"]["low"] or 0.0


def _value(row: dict[str, Any]) -> float:
    return row["gain"]["value"] or 0.0
