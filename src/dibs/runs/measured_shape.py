"""``train.shape: auto``: the shape of a run's steps, measured before the first of them.

It is measured once. ``shape.json`` in the run's folder keeps it, so that a run that goes on has the
same; ``config.yaml`` has what was given. The completions that were drawn for it count as pilots.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dibs.config import Config
from dibs.files import write_text
from dibs.runs.console import View
from dibs.runs.measure_variance import run_variance
from dibs.training.shape_advice import recommended_keys
from dibs.types import InputError

FILE = "shape.json"


def measured_shape(config: Config, view: View) -> dict[str, Any]:
    """What ``dibs variance --shapes`` says of the run's policy and data.

    With ``keys``, which follow from it, and ``drawn``, the completions that were drawn.
    """
    view.message("Measuring which shape of a step is least noisy (train.shape auto).")
    measured = run_variance(config, view, shapes=True)
    found, best = measured["shapes"], measured["shapes"]["recommended"]
    view.message(found["advice"])
    drawn = measured["prompts"] * measured["completions_per_prompt"]
    return {
        "keys": {} if best is None else recommended_keys(best, config),
        "drawn": {"rollouts": drawn, "tokens": round(drawn * measured["completion_length"])},
        **found,
    }


def kept_shape(folder: Path) -> dict[str, Any]:
    """The shape of the run in a folder. InputError where it is not there."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("keys"), dict):
        raise InputError(
            f"{folder / FILE} is missing or damaged, so the shape that was measured is unknown; start "
            "again with overwrite true"
        )
    return found


def keep_shape(folder: Path, shape: dict[str, Any]) -> None:
    """Write it."""
    write_text(folder / FILE, json.dumps(shape, indent=1) + "\n")


def with_shape(config: Config, shape: dict[str, Any]) -> Config:
    """The configuration whose steps have that shape.

    Raises InputError where other keys do not allow it.
    """
    values = config.model_dump(exclude_unset=True)
    for section, keys in shape["keys"].items():
        values[section] = {**values.get(section, {}), **keys}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(
            f"train.shape auto found: {shape['advice']} Other keys do not allow that: {reason}"
        ) from None
