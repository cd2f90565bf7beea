"""The budget's state in the checkpoints of TRL and verl, and in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dibs.allocation.prompt_budget import PromptBudget
from dibs.files import write_json
from dibs.types import InputError

TRL_FILE = "dibs_state.json"
"""Name of the file in a checkpoint folder of TRL."""
VERL_FILE = "dibs.json"
"""Name of the file in ``global_step_N``, a checkpoint folder of verl."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, which :meth:`PromptBudget.state` makes or which holds one.

    The folder is created if it is missing. The file is whole, or it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, state)


def load_budget(path: Path, budget: PromptBudget) -> bool:
    """Load a budget's state from a file. Return False if there is no file.

    Raises InputError for a file that cannot be read or holds no state.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the online state {path}: {error}") from None
    try:
        budget.load_state(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no online state of dibs ({type(error).__name__}: {error}); remove it to start "
            "anew"
        ) from None
    return True


def read_trl_state(folder: Path) -> dict[str, Any]:
    """Read the state in a TRL checkpoint: the number of ``rollouts`` and the ``budget``'s state.

    Raises InputError where the file is missing or damaged.
    """
    path = folder / TRL_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {"rollouts": int(state["rollouts"]), "budget": dict(state["budget"])}
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {TRL_FILE}: DIBSGRPOTrainer did not write this checkpoint; start from its "
            "weights instead (model=...), without resume_from_checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); resume from another checkpoint") from None
