"""Writing completions: from prompts and counts to sampled tokens. Knows no rewards."""

from dibs.rollouts.sampling.engines import build_sampler
from dibs.rollouts.sampling.sampler import Sampled, Sampler, SampleRequest, collected

__all__ = ["SampleRequest", "Sampled", "Sampler", "build_sampler", "collected"]
