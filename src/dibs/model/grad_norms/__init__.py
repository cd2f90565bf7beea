"""Gradient norms of single completions, for a whole batch at the price of about one ordinary pass."""

from dibs.model.grad_norms.methods import GradientNorms, gradient_norms

__all__ = ["GradientNorms", "gradient_norms"]
