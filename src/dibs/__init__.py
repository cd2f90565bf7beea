"""DIBS: how many completions each prompt deserves."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dibs.allocation.allocators import allocate, allocator
    from dibs.allocation.budget_config import BudgetConfig
    from dibs.allocation.prompt_budget import PromptBudget
    from dibs.allocation.prompt_queue import PromptQueue
    from dibs.api import evaluate, load_run, measure_variance, train, verify
    from dibs.rollouts.sampling.weight_loader import WeightLoader as WeightLoader
    from dibs.types import InputError

__version__ = "0.1.0"
__all__ = [
    "BudgetConfig",
    "InputError",
    "PromptBudget",
    "PromptQueue",
    "allocate",
    "allocator",
    "evaluate",
    "load_run",
    "measure_variance",
    "train",
    "verify",
]

_HOMES = {
    "BudgetConfig": "dibs.allocation.budget_config",
    "InputError": "dibs.types",
    "PromptBudget": "dibs.allocation.prompt_budget",
    "PromptQueue": "dibs.allocation.prompt_queue",
    "WeightLoader": "dibs.rollouts.sampling.weight_loader",
    "allocate": "dibs.allocation.allocators",
    "allocator": "dibs.allocation.allocators",
    "evaluate": "dibs.api",
    "load_run": "dibs.api",
    "measure_variance": "dibs.api",
    "train": "dibs.api",
    "verify": "dibs.api",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for.

    scipy takes a second, torch more, and WeightLoader needs vLLM.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'dibs' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    """Names that a notebook completes."""
    return [*__all__, "__version__"]
