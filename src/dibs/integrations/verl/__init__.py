"""Per-prompt budgets inside verl: ``python -m dibs.integrations.verl.main`` in place of verl's own main.

It registers a trainer that draws ``counts[i]`` completions of prompt i, weighs the groups of different
sizes and updates the statistics of their prompts. :class:`dibs.allocation.prompt_budget.PromptBudget`
decides counts and weights; this package translates between it and verl. docs/integrations.md describes
how to use it.
"""
