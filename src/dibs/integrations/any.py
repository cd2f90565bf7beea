"""The former name of ``dibs.PromptBudget`` and ``dibs.BudgetConfig``."""

from dibs.allocation.prompt_budget import BudgetConfig, PromptBudget

__all__ = ["BudgetConfig", "PromptBudget"]
