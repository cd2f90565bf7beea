"""The former name of ``dibs.WeightLoader``, kept for command lines of vLLM servers."""

from dibs.rollouts.sampling.weight_loader import WeightLoader

__all__ = ["WeightLoader"]
