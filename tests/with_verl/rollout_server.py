"""A rollout server for verl that decodes with transformers on the CPU.

Random numbers depend on the prompt, the version of the weights and how many completions of the prompt
were asked for before, not on what is decoded beside it: two runs draw the same completions.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

GATHER_SECONDS = 0.05
"""How long a request waits for others to be decoded with."""


@ray.remote
class SmallServer:
    def __init__(self, path: str, max_tokens: int, rank: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.max_tokens = max_tokens
        self.rank = rank
        self.version = 0
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.waiting: list[tuple[list[int], list[float], float, asyncio.Future]] = []

    async def generate(self, prompt_ids, sampling_params, request_id, **others):
        done = asyncio.get_running_loop().create_future()
        asked = (self.version, *prompt_ids)
        self.asked[asked] += 1
        draw = random.Random(f"{asked} {self.rank} {self.asked[asked]}")
        numbers = [draw.random() for _ in range(self.max_tokens)]
        temperature = float(sampling_params.get("temperature", 1.0))
        self.waiting.append((list(prompt_ids), numbers, temperature, done))
        await asyncio.sleep(GATHER_SECONDS)
        if self.waiting:
            taken, self.waiting = self.waiting, []
            self._decode(taken)
        return await done

    @torch.no_grad()
    def _decode(self, requests) -> None:
        longest = max(len(prompt) for prompt, *_ in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, *_) in enumerate(requests):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        numbers = torch.tensor([each for _, each, _, _ in requests])
        temperature = torch.tensor([each for _, _, each, _ in requests]).unsqueeze(1)
        cache, tokens, logprobs = None, [], []
        step = ids
        for place in range(self.max_tokens):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            out = self.model(
                input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            cache = out.past_key_values
            scores = (out.logits[:, -1].float() / temperature).log_softmax(-1)
            below = scores.exp().cumsum(-1) < numbers[:, place : place + 1]
            chosen = below.sum(-1, keepdim=True).clamp(max=scores.shape[1] - 1)
            tokens.append(chosen)
            logprobs.append(scores.gather(1, chosen))
            step = chosen
            mask = torch.cat([mask, torch.ones_like(chosen)], dim=1)
        end = self.model.config.eos_token_id
        for row, (*_, done) in enumerate(requests):
            made = [int(each[row]) for each in tokens]
            length = made.index(end) + 1 if end in made else len(made)
            done.set_result(
                TokenOutput(
                    token_ids=made[:length],
                    log_probs=[float(each[row]) for each in logprobs[:length]],
                    stop_reason="completed",
                    extra_fields={"global_steps": self.version},
                )
            )

    async def load(self, weights, version) -> None:
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()
        self.version = version or self.version

    async def set_global_steps(self, version) -> None:
        self.version = version

    async def nothing(self, *args, **kwargs) -> None:
        """This server keeps its weights and has no cache between requests."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    abort_all_requests = resume_generation = nothing


class SmallReplica(RolloutReplica):
    async def launch_servers(self):
        server = SmallServer.options(
            name=f"small_server_{self.replica_rank}", num_cpus=0, max_concurrency=1000
        ).remote(self.model_config.path, self.config.response_length, self.replica_rank)
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"small://{self.replica_rank}"
        await server.wake_up.remote()


class SmallServerAdapter(BaseRollout):
    """In the trainer's process; hands its server new weights."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    def __init__(self, config, model_config, device_mesh, replica_rank=-1):
        super().__init__(config, model_config, device_mesh)
        self.sleep_level = 1

    async def update_weights(
        self, weights, wire_format="named_tensors", global_steps=None, **others
    ):
        whole = {
            name: (each.full_tensor() if hasattr(each, "full_tensor") else each).detach().clone()
            for name, each in weights
        }
        server = ray.get_actor(f"small_server_{os.environ['RANK']}")
        await server.load.remote(whole, global_steps)
