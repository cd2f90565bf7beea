"""What the plug-in adds to a checkpoint of TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dibs.files import write_json
from dibs.types import InputError

NAME = "dibs_state.json"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Into a checkpoint's folder, which need not be there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, state)


def read_state(folder: Path) -> dict[str, Any]:
    """What :func:`write_state` wrote.

    Raises InputError where there is none or it is damaged.
    """
    path = folder / NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {"rollouts": int(state["rollouts"]), "budget": dict(state["budget"])}
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {NAME}: DIBSGRPOTrainer did not write this checkpoint; start from its "
            "weights instead (model=...), without resume_from_checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); resume from another checkpoint") from None
