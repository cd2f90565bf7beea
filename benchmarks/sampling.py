"""The transformers engine against plain ``generate``, in one run: tokens/s on ragged counts.

Both sample the same prompts with the same counts from the same model, at temperature 1 with nothing cut
off, in batches of as many tokens, on one thread. ``generate`` gets the rows in request order, as
trainers give them; it returns no log-probabilities, ours does. Ours holds prompts once for their
completions, as `dibs train` lets it. Tokens are counted up to the end of sequence. Counts are ragged: a
geometric draw a prompt, as an allocator gives them. Two cases:

- arithmetic: the embedded task's warm-started policy; short prompts, completions of 8 tokens on average.
- long: a random Qwen2 (4 layers of 192), prompts of 16 to 192 tokens, completions of up to 256 whose
  ends come at random, after 64 tokens on average.

Rounds alternate between the two; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from shared import positive
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from dibs.config import PolicyConfig, WarmStartConfig
from dibs.data.arithmetic import draw_problem
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.model.warm_start import build_tokenizer, warm_started_policy
from dibs.rollouts.sampling import SampleRequest, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.sharing_check import made_up_examples, try_holding, try_sharing
from dibs.types import Prompt


class Case:
    """A policy, requests with ragged counts, and the limits of sampling."""

    def __init__(
        self, name: str, policy: Policy, prompts: Sequence[Prompt], length: int, batch_tokens: int
    ) -> None:
        self.name, self.policy, self.length, self.batch_tokens = name, policy, length, batch_tokens
        counts = np.random.default_rng(0).geometric(1 / 9, len(prompts)) - 1
        self.requests = [
            SampleRequest(prompt, int(count), (0, int(prompt.prompt_id, 16)))
            for prompt, count in zip(prompts, counts, strict=True)
        ]
        policy.model.eval()
        self.model = copy.deepcopy(policy.model)  # attention stays that of transformers
        contexts = [prompt.token_ids for prompt in prompts[:3]]
        samples = made_up_examples(contexts, length)
        reason = try_sharing(policy, samples) or try_holding(policy, contexts, length)
        if not policy.holds_prompts:
            sys.exit(f"{name}: prompts are not held once: {reason}")

    def ours(self) -> int:
        """Tokens written by the engine."""
        sampler = TransformersSampler(self.policy, self.length, self.batch_tokens)
        groups = collected(self.requests, sampler.sample(self.requests))
        return sum(len(c.token_ids) for group in groups for c in group)

    @torch.no_grad()
    def plain(self) -> int:
        """Tokens written by ``generate``."""
        prompts = [r.prompt.token_ids for r in self.requests for _ in range(r.count)]
        policy = self.policy
        settings = GenerationConfig(
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=self.length,
            eos_token_id=policy.eos_ids,
            pad_token_id=policy.pad_id,
        )
        longest = max(map(len, prompts))
        size = self.batch_tokens // (longest + self.length)
        tokens = 0
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            width = max(map(len, part))
            ids = torch.full((len(part), width), policy.pad_id)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(part):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            output = self.model.generate(ids, attention_mask=mask, generation_config=settings)
            written = output[:, width:]
            ended = torch.isin(written, torch.tensor(policy.eos_ids))
            lengths = torch.where(ended.any(1), ended.long().argmax(1) + 1, written.shape[1])
            tokens += int(lengths.sum())
        return tokens


def arithmetic(prompts: int, updates: int) -> Case:
    """Short completions of a policy that knows the task after ``updates`` of warm start."""
    config = WarmStartConfig(updates=updates)
    folder = warm_started_policy("arithmetic", config, lambda *progress: None)
    policy = load_policy(PolicyConfig(model=str(folder), device="cpu"), 1.0)
    rng = Random(0)
    made = []
    for i in range(prompts):
        problem = draw_problem(rng, 1, 4)
        ids = tuple(policy.tokenizer.encode(problem.prompt))
        made.append(Prompt(f"{i:x}", problem.prompt, ids, ""))
    return Case("arithmetic", policy, made, 40, 32768)


def long(prompts: int) -> Case:
    """Completions that end at random, 64 tokens long on average."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # Every token alike, but for the end of sequence: once in 64.
        model.lm_head.weight.zero_()
        bias = torch.zeros(config.vocab_size)
        bias[tokenizer.eos_token_id] = np.log(1023 / 63)
        model.lm_head.bias = torch.nn.Parameter(bias)
    rng = np.random.default_rng(1)
    made = [
        Prompt(f"{i:x}", "", tuple(rng.integers(10, 1024, rng.integers(16, 193)).tolist()), "")
        for i in range(prompts)
    ]
    return Case("long", Policy(model, tokenizer), made, 256, 32768)


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """Tokens/s and tokens."""
    started = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - started), tokens


def measure(case: Case, rounds: int) -> dict[str, object]:
    """Alternating rounds, after one of each that is not counted."""
    speeds: dict[str, list[float]] = {"ours": [], "generate": []}
    lengths = {}
    for turn in range(rounds + 1):
        for name, run in (("ours", case.ours), ("generate", case.plain)):
            speed, tokens = timed(run)
            lengths[name] = tokens / sum(request.count for request in case.requests)
            if turn:
                speeds[name].append(speed)
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["generate"], strict=True)]
    return {
        "case": case.name,
        "prompts": len(case.requests),
        "completions": sum(request.count for request in case.requests),
        "mean_length": lengths,
        "max_completion_length": case.length,
        "batch_tokens": case.batch_tokens,
        "tokens_per_second": medians,
        "rounds": speeds,
        "speedup": medians["ours"] / medians["generate"],
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
    }


def main() -> None:
    """Run both cases and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompts", type=positive, default=64, help="prompts a case (default: 64)")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds counted (default: 5)")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the arithmetic policy's warm start; fewer for a quick try",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = (arithmetic(options.prompts, options.warm_start_updates), long(options.prompts))
    rows = [measure(case, options.rounds) for case in cases]
    result = {
        "speedup_vs_generate": min(row["speedup"] for row in rows),
        "cases": rows,
        "torch": torch.__version__,
        "threads": 1,
        "cores": os.cpu_count(),
    }
    if options.json:
        print(json.dumps(result))
        return
    table = Table("case", "completions", "mean length", "ours tok/s", "generate tok/s", "speedup")
    for row in rows:
        speeds = row["tokens_per_second"]
        table.add_row(
            row["case"],
            str(row["completions"]),
            f"{row['mean_length']['ours']:.1f} / {row['mean_length']['generate']:.1f}",
            f"{speeds['ours']:,.0f}",
            f"{speeds['generate']:,.0f}",
            f"{row['speedup']:.2f} ({row['speedup_min']:.2f} to {row['speedup_max']:.2f})",
        )
    console = Console()
    console.print(table)
    console.print(f"{result['speedup_vs_generate']:.2f} times generate, the lower of the two")


if __name__ == "__main__":
    main()
