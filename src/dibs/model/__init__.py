"""The policy as a torch model: load, log-probabilities, gradient norms."""
