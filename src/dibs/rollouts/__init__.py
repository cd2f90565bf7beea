"""Prompts and counts to judged groups of completions."""
