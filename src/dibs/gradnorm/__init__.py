"""Gradient norms of single completions, for a whole batch at the price of about one ordinary pass."""

from dibs.gradnorm.measure import GradientNorms, gradient_norms

__all__ = ["GradientNorms", "gradient_norms"]
