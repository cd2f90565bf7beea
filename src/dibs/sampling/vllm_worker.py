"""``dibs.WeightLoader`` under another name, which command lines of vLLM servers may use."""

from dibs.rollouts.sampling.weight_loader import WeightLoader

__all__ = ["WeightLoader"]
