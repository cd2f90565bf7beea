"""Choosing and starting the sampling engine."""

from collections.abc import Iterator, Sequence

from dibs.config import Config
from dibs.files import one_line
from dibs.model.memory import out_of_memory
from dibs.model.policy import Policy
from dibs.rollouts.sampling.annealing import configured_annealing
from dibs.rollouts.sampling.parity import ParityCheck
from dibs.rollouts.sampling.sampler import IdleSampler, Sampled, Sampler, SampleRequest
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.types import InputError, NonFiniteError

_ADVICE = "use sampling.engine vllm, or a model of another architecture"


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
        return _checked(config, policy)
    except NonFiniteError as error:
        raise InputError(f"policy.model {config.policy.model}: {error}") from None


def _checked(config: Config, policy: Policy) -> Sampler:
    """The sampler around the model's own forward pass, where that pass goes on from a cache rightly.

    Not every architecture does: some take no cache, and some give other numbers with it.
    """
    sampling = config.sampling
    length, tokens = sampling.max_completion_length, sampling.batch_tokens
    name = f"policy.model {config.policy.model}: its {type(policy.base_model).__name__}"

    def draw(requests: Sequence[SampleRequest], length: int) -> Iterator[Sampled]:
        try:
            yield from TransformersSampler(policy, length, tokens).sample(requests)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            if out_of_memory(error):
                raise
            raise InputError(
                f"{name} cannot be continued token by token ({one_line(error)}); {_ADVICE}"
            ) from error

    ParityCheck(policy, sampling)(f"{name}, continued token by token,", draw, _ADVICE)
    return TransformersSampler(policy, length, tokens, configured_annealing(sampling))
