"""Sampling through ``generate`` of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from dibs.memory import with_smaller_batches
from dibs.policy import Policy
from dibs.sampling.base import SampleRequest
from dibs.types import Completion, NonFiniteError


class InverseCdfSampling(LogitsProcessor):
    """Draws each token from the softmax with a uniform number given beforehand, and notes its logprob.

    ``generate`` draws from a global random state, so what one completion says would depend on its
    neighbours in the batch. Here row b, token t is the inverse CDF at ``uniforms[b, t]``; greedy
    search then picks the one token left finite.
    """

    def __init__(self, uniforms: Tensor, temperature: float, prompt_length: int) -> None:
        self.uniforms = uniforms
        self.temperature = temperature
        self.prompt_length = prompt_length
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = (scores.float() / self.temperature).log_softmax(-1)
        cumulative = logprobs.double().exp().cumsum(-1)
        drawn = self.uniforms[:, input_ids.shape[1] - self.prompt_length] * cumulative[:, -1]
        token = torch.searchsorted(cumulative, drawn.unsqueeze(-1), right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        self.logprobs.append(logprobs.gather(-1, token).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


class TransformersSampler:
    """Decodes requests in batches of similar prompt length, bounded in tokens."""

    def __init__(self, policy: Policy, max_completion_length: int, batch_tokens: int) -> None:
        self.policy = policy
        self.max_completion_length = max_completion_length
        self.batch_tokens = batch_tokens

    def sample(
        self, requests: Sequence[SampleRequest], temperature: float | None = None
    ) -> list[list[Completion]]:
        """See :class:`dibs.sampling.base.Sampler`."""
        rows = [(i, k) for i, request in enumerate(requests) for k in range(request.count)]
        done: dict[tuple[int, int], Completion] = {}
        longest = max((len(r.prompt.token_ids) for r in requests), default=0)

        def decode(tokens: int) -> None:
            self.batch_tokens = tokens
            for batch in self._batches(requests, [row for row in rows if row not in done]):
                done.update(zip(batch, self._decode(requests, batch, temperature), strict=True))

        # Smaller batches stay for the rest of the run.
        with_smaller_batches(decode, self.batch_tokens, longest + self.max_completion_length)
        return [[done[i, k] for k in range(request.count)] for i, request in enumerate(requests)]

    def _batches(
        self, requests: Sequence[SampleRequest], rows: list[tuple[int, int]]
    ) -> Iterator[list[tuple[int, int]]]:
        """Rows of similar prompt length, longest first, ``batch_tokens`` a batch at most."""
        rows = sorted(rows, key=lambda row: -len(requests[row[0]].prompt.token_ids))
        start = 0
        while start < len(rows):
            prompt_length = len(requests[rows[start][0]].prompt.token_ids)
            size = max(1, self.batch_tokens // (prompt_length + self.max_completion_length))
            yield rows[start : start + size]
            start += size

    @torch.no_grad()
    def _decode(
        self,
        requests: Sequence[SampleRequest],
        rows: list[tuple[int, int]],
        temperature: float | None,
    ) -> list[Completion]:
        policy = self.policy
        prompts = [requests[i].prompt.token_ids for i, _ in rows]
        longest = max(len(ids) for ids in prompts)
        input_ids = torch.full((len(rows), longest), policy.pad_id)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(prompts):
            input_ids[row, longest - len(ids) :] = torch.tensor(ids)
            mask[row, longest - len(ids) :] = 1
        uniforms = np.stack(
            [
                np.random.default_rng([*requests[i].seed, k]).random(self.max_completion_length)
                for i, k in rows
            ]
        )
        processor = InverseCdfSampling(
            torch.from_numpy(uniforms).to(policy.device),
            policy.temperature if temperature is None else temperature,
            longest,
        )
        with self._generation_settings() as settings:
            output: Tensor = policy.model.generate(
                input_ids.to(policy.device),
                attention_mask=mask.to(policy.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([processor]),
            )
        tokens = output[:, longest:].cpu().tolist()
        drawn = torch.stack(processor.logprobs, dim=1)
        if not bool(torch.isfinite(drawn).all()):
            raise NonFiniteError("the policy gives NaN or infinite log-probabilities")
        logprobs = drawn.cpu().tolist()
        return [self._completion(*row) for row in zip(tokens, logprobs, strict=True)]

    @contextmanager
    def _generation_settings(self) -> Iterator[GenerationConfig]:
        """Greedy settings without what the model ships (penalties, top-p); model in eval mode.

        ``generate`` fills whatever is unset from the model's own generation config, so that one is
        put aside for the call.
        """
        model = self.policy.model
        shipped, training = model.generation_config, model.training
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_completion_length,
            eos_token_id=self.policy.eos_ids,
            pad_token_id=self.policy.pad_id,
        )
        model.generation_config = GenerationConfig()
        model.eval()
        try:
            yield settings
        finally:
            model.generation_config = shipped
            model.train(training)

    def _completion(self, tokens: list[int], logprobs: list[float]) -> Completion:
        eos = set(self.policy.eos_ids)
        end = next((t for t, token in enumerate(tokens) if token in eos), None)
        length = len(tokens) if end is None else end + 1
        text = self.policy.tokenizer.decode(
            tokens[: length if end is None else end], skip_special_tokens=True
        )
        return Completion(
            tuple(tokens[:length]), text, tuple(logprobs[:length]), finished=end is not None
        )
