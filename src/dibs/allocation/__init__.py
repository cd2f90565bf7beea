"""What is known of prompts, how many completions each gets, what each completion weighs. No torch."""
