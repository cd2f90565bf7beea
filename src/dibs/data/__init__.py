"""Files, data sets and embedded tasks, read as questions and rendered as prompts. No torch."""
