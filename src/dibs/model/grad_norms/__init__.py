"""Gradient norms of single completions; those of a batch cost about one ordinary training pass."""

from dibs.model.grad_norms.methods import GradientNorms, gradient_norms, gradient_sums
from dibs.model.grad_norms.weighted import check_weighted, weighted_backward

__all__ = [
    "GradientNorms",
    "check_weighted",
    "gradient_norms",
    "gradient_sums",
    "weighted_backward",
]
