"""Old import path of ``dibs.PromptBudget`` and ``dibs.BudgetConfig``."""

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_budget import PromptBudget

__all__ = ["BudgetConfig", "PromptBudget"]
