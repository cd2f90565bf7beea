"""Gold answer and completion to a verdict. Knows no tokens."""
