"""A check that an engine with its own copy of the weights samples from the policy.

A copy can be wrong without an error: weights were not loaded, a kernel kept a packed version of the old
ones, or log-probabilities are at another temperature. So the engine draws a few tokens and the learner
scores them, at the start and after each weight update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from dibs.config import SamplingConfig
from dibs.model.forward_pass import in_evaluation_mode
from dibs.model.policy import Policy
from dibs.rollouts.sampling.sampler import Sampled, SampleRequest
from dibs.types import InputError, NonFiniteError, Prompt, TrainingExample

_EXACT_TOLERANCE = 1e-3
"""Accepted difference of log-probabilities in float32, in nats."""
_TOLERANCE = 0.5
"""The same in lower precision. One token may be far off; a wrong copy is off by more on some token."""
_PROMPT_LENGTH = 8
_COMPLETIONS = 4
_LENGTH = 8

Draw = Callable[[Sequence[SampleRequest], int], Iterable[Sampled]]
"""``draw(requests, length)``: completions of at most ``length`` tokens, at the policy's temperature."""


class ParityCheck:
    """Compares an engine's log-probabilities with the learner's.

    ``difference``: the largest difference in the last check, in nats; None before the first check.
    """

    def __init__(self, policy: Policy, config: SamplingConfig) -> None:
        self.policy = policy
        self.length = min(_LENGTH, config.max_completion_length)
        tolerance = config.parity_tolerance
        if tolerance == "auto":
            exact = policy.model.dtype == torch.float32 and not policy.mixed
            tolerance = _EXACT_TOLERANCE if exact else _TOLERANCE
        self.tolerance = tolerance
        self.difference: float | None = None
        self._prompt = Prompt("0", "", _token_ids(policy), "")

    def __call__(self, engine: str, draw: Draw, advice: str) -> None:
        """Check the engine named ``engine``.

        Raises:
            InputError: a log-probability differs by more than the tolerance, or the engine draws
                nothing; the message ends with ``advice``.
            NonFiniteError: the learner's own log-probabilities are NaN or infinite.
        """
        if self.tolerance is None:
            return
        ids = self._prompt.token_ids
        if not bool(torch.isfinite(self._scores([(ids[:1], ids[1:])])).all()):
            raise NonFiniteError("the policy gives NaN or infinite log-probabilities")
        request = SampleRequest(self._prompt, _COMPLETIONS, (0,))
        drawn = [each.completion for each in draw([request], self.length)]
        if not drawn:
            raise InputError(f"{engine} returned no completion to compare; {advice}")
        scores = self._scores([(ids, completion.token_ids) for completion in drawn])
        found = [
            (abs(theirs - ours), token, theirs, ours)
            for completion, row in zip(drawn, scores.tolist(), strict=True)
            for token, theirs, ours in zip(
                completion.token_ids, completion.sampling_logprobs, row, strict=False
            )
        ]
        self.difference, token, theirs, ours = max(found)
        if self.difference > self.tolerance:
            raise InputError(
                f"{engine} does not sample from the policy: it gives token {token} the log-probability "
                f"{theirs:.5f}, the learner {ours:.5f}; the difference of {self.difference:.2g} exceeds "
                f"{self.tolerance:g} (sampling.parity_tolerance); {advice}"
            )

    @torch.no_grad()
    def _scores(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
        examples = [TrainingExample(context, tokens, 0.0, 0.0) for context, tokens in pairs]
        with in_evaluation_mode(self.policy.model):
            return self.policy.logprobs(self.policy.collate(examples))


def _token_ids(policy: Policy) -> tuple[int, ...]:
    """The tokens of a fixed prompt: ordinary ones, spread over the vocabulary."""
    size = min(len(policy.tokenizer), policy.model.get_input_embeddings().num_embeddings)
    special = {*policy.tokenizer.all_special_ids, *policy.eos_ids}
    ordinary = [token for token in range(size) if token not in special]
    step = max(1, len(ordinary) // _PROMPT_LENGTH)
    return tuple(ordinary[::step][:_PROMPT_LENGTH])
