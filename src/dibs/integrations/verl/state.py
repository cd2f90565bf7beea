"""What is known of each prompt, as a file beside verl's checkpoints and one of its own."""

from __future__ import annotations

import json
from pathlib import Path

from dibs.allocation.prompt_budget import PromptBudget
from dibs.files import write_json
from dibs.types import InputError

FILE = "dibs.json"
"""In verl's ``global_step_N``."""


def save_budget(path: Path, budget: PromptBudget) -> None:
    """Write the budget's state; the file is whole or is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, budget.state())


def load_budget(path: Path, budget: PromptBudget) -> bool:
    """Go on from a state file; False where there is none.

    Raises InputError for a file that is no state.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the online state {path}: {error}") from None
    try:
        budget.load_state(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no online state of dibs ({type(error).__name__}: {error}); remove it to start "
            "anew"
        ) from None
    return True
