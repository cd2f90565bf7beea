"""Writing completions. Knows no rewards."""

from dibs.config import SamplingConfig
from dibs.policy import Policy
from dibs.sampling.base import Sampled, Sampler, SampleRequest, collected
from dibs.sampling.transformers import TransformersSampler

__all__ = ["SampleRequest", "Sampled", "Sampler", "build_sampler", "collected"]


def build_sampler(config: SamplingConfig, policy: Policy) -> Sampler:
    """The engine that the configuration asks for."""
    return TransformersSampler(policy, config.max_completion_length, config.batch_tokens)
