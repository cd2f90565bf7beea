"""DIBS: how many completions each prompt deserves."""

from typing import TYPE_CHECKING, Any

from dibs.allocation.allocators import allocate, allocator
from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_budget import PromptBudget
from dibs.types import InputError

if TYPE_CHECKING:
    from dibs.rollouts.sampling.weight_loader import WeightLoader as WeightLoader

__version__ = "0.1.0"
__all__ = ["BudgetConfig", "InputError", "PromptBudget", "allocate", "allocator"]


def __getattr__(name: str) -> Any:
    """``WeightLoader`` needs vLLM and torch, so it is imported when vLLM asks for it."""
    if name == "WeightLoader":
        from dibs.rollouts.sampling.weight_loader import WeightLoader

        return WeightLoader
    raise AttributeError(f"module 'dibs' has no attribute {name!r}")
