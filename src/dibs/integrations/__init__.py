"""Per-prompt budgets inside other trainers: counts in, ragged groups out."""
