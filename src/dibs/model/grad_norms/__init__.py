"""Gradient norms of single completions; those of a batch cost about one ordinary training pass."""

from dibs.model.grad_norms.methods import GradientNorms, gradient_norms
from dibs.model.grad_norms.weighted import check_weighted, weighted_backward

__all__ = ["GradientNorms", "check_weighted", "gradient_norms", "weighted_backward"]
