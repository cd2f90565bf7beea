"""Judging completions: from a gold answer and a completion's text to a verdict. Knows no tokens."""
