"""Choosing and starting the sampling engine."""

from dibs.config import Config
from dibs.model.policy import Policy
from dibs.rollouts.sampling.annealing import Annealing
from dibs.rollouts.sampling.sampler import IdleSampler, Sampler
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.types import InputError, NonFiniteError


def build_sampler(config: Config, policy: Policy, main: bool = True) -> Sampler:
    """Start the engine that the configuration names, with the policy's weights.

    ``main``: whether this is the first process of a run, which alone uses servers. Raises InputError
    where the engine cannot be started or reached, or does not sample from the policy.
    """
    sampling = config.sampling
    try:
        if sampling.engine == "vllm":
            from dibs.rollouts.sampling.vllm import VllmSampler

            return VllmSampler(policy, config)
        if sampling.engine == "vllm_server" and not main:
            return IdleSampler(sampling.batch_tokens)
        if sampling.engine == "vllm_server":
            try:
                from dibs.rollouts.sampling.vllm_server import VllmServerSampler
            except ModuleNotFoundError as error:
                raise InputError(
                    f"sampling.engine vllm_server needs {error.name}; pip install 'dibs-rl[vllm-server]'"
                ) from None
            return VllmServerSampler(policy, sampling)
    except NonFiniteError as error:
        raise InputError(f"policy.model {config.policy.model}: {error}") from None
    annealing = None
    if sampling.anneal_from is not None:
        annealing = Annealing(sampling.anneal_from, sampling.anneal_floor, sampling.anneal_tokens)
    return TransformersSampler(
        policy, sampling.max_completion_length, sampling.batch_tokens, annealing
    )
