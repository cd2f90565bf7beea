"""Per-prompt budgets inside other trainers, whose groups then differ in size."""
