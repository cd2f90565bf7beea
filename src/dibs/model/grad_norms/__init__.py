"""Gradient norms of single completions; those of a batch cost about one ordinary training pass."""

from dibs.model.grad_norms.methods import GradientNorms, gradient_norms

__all__ = ["GradientNorms", "gradient_norms"]
