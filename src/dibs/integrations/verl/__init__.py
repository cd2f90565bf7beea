"""Per-prompt budgets inside verl: ``python -m dibs.integrations.verl.main`` in place of verl's own main.

The trainer that it registers asks for ``counts[i]`` completions of prompt i by verl's per-prompt hook,
weighs the ragged groups, and learns from them for later steps. What is known and how counts follow is
:class:`dibs.allocation.prompt_budget.PromptBudget`'s; here names are translated. How to use it:
docs/integrations.md.
"""
