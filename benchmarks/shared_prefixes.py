"""What a prompt computed once for all its completions saves: updates, log-probabilities and norms.

Both ways run on the same model and completions, in turn, ``--rounds`` times; ratios are medians over
rounds of the ratio within a round, the plain way's seconds over the shared way's. Which way an update
takes is its own choice: it packs where that is expected to cost less. Gradient norms are never shared,
so their ratio shows the noise. The models have random weights.

    python benchmarks/shared_prefixes.py [--json]
    python benchmarks/shared_prefixes.py --shapes long short --rounds 9
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from shared import positive
from transformers import Qwen2Config, Qwen2ForCausalLM

from dibs.config import UpdateConfig
from dibs.model.grad_norms import gradient_norms
from dibs.model.packing import PackedBatch
from dibs.model.policy import Policy
from dibs.model.prompt_sharing import share_prompts
from dibs.model.warm_start import build_tokenizer
from dibs.training.losses import PolicyLoss
from dibs.training.sharing_check import try_sharing
from dibs.training.updater import Updater
from dibs.types import TrainingExample


@dataclass(frozen=True)
class Shape:
    """A step: lengths are drawn between two bounds, both included.

    ``prompts`` have ``size`` completions each, dealt to ``updates``.
    """

    prompts: int
    prompt: tuple[int, int]
    completion: tuple[int, int]
    size: tuple[int, int] = (8, 8)
    updates: int = 1
    vocabulary: int = 64


SHAPES = {
    "long": Shape(2, (256, 256), (64, 64)),
    "short": Shape(8, (16, 16), (32, 32)),
    "dealt": Shape(2, (256, 256), (64, 64), updates=4),
    "ragged": Shape(8, (32, 256), (8, 96), (1, 12)),
    "long completions": Shape(2, (128, 128), (384, 384), (4, 4)),
    "vocabulary": Shape(2, (256, 256), (64, 64), vocabulary=8192),
}
"""The first two are those that the aims are for."""


def completions(shape: Shape) -> list[TrainingExample]:
    """Random tokens, with advantages of both signs."""
    random = np.random.default_rng(0)

    def tokens(bounds: tuple[int, int]) -> tuple[int, ...]:
        length = random.integers(bounds[0], bounds[1] + 1)
        return tuple(random.integers(3, 40, size=length).tolist())

    made = []
    for _ in range(shape.prompts):
        context = tokens(shape.prompt)
        size = random.integers(shape.size[0], shape.size[1] + 1)
        made += [
            TrainingExample(context, tokens(shape.completion), random.normal(), 0.1)
            for _ in range(size)
        ]
    return made


def policy_of(shape: Shape, args: argparse.Namespace) -> Policy:
    """A random policy with the tokenizer of the embedded task."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=args.width,
        intermediate_size=4 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).eval().to(args.device)
    return Policy(model, tokenizer)


def works(policy: Policy, made: Sequence[TrainingExample], shape: Shape) -> dict[str, Any]:
    """What is timed, by name."""
    # Tiny steps, so that the policy stays as it was.
    config = UpdateConfig(learning_rate=1e-9, updates_per_step=shape.updates)
    updater = Updater(policy, PolicyLoss(clip=(0.2, 0.28)), config, 10**6)

    @torch.no_grad()
    def logprobs() -> None:
        for _, batch in policy.batches(made, config.micro_batch_tokens):
            policy.logprobs(batch)

    return {
        "update": lambda: updater.step(made),
        "logprobs": logprobs,
        "norms": lambda: gradient_norms(policy, made),
    }


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of one call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and differences of one shape."""
    policy, made = policy_of(shape, args), completions(shape)
    reason = try_sharing(policy, made[:8])
    if reason is not None:
        raise SystemExit(f"prompts cannot be shared: {reason}")
    found: dict[str, dict[str, list[float]]] = {}
    for name, work in works(policy, made, shape).items():
        taken: dict[str, list[float]] = {"plain": [], "shared": []}
        for turn in range(args.rounds + 1):
            for way, each in taken.items():
                share_prompts(policy, on=way == "shared")
                each.append(seconds(work, args.device))
                if turn == 0:
                    each.clear()  # the first round warms up
        found[name] = taken
    result: dict[str, Any] = {"shape": asdict(shape)}
    for name, taken in found.items():
        ratios = [a / b for a, b in zip(taken["plain"], taken["shared"], strict=True)]
        result[f"{name}_speedup"] = statistics.median(ratios)
        result[f"{name}_seconds"] = {way: statistics.median(each) for way, each in taken.items()}
    return {**result, **differences(policy, made)}


def differences(policy: Policy, made: Sequence[TrainingExample]) -> dict[str, Any]:
    """Tokens that both ways compute, whether the step is packed, and how far the gradients are apart."""
    computed: dict[str, Any] = {"packed": False}
    results = []
    for on in (False, True):
        share_prompts(policy, on=on)
        updater = Updater(policy, PolicyLoss(clip=None), UpdateConfig(), 1)
        updater.optimizer.zero_grad(set_to_none=False)
        updater.gradient(made)
        rows, tokens = [torch.empty(0)] * len(made), 0
        with torch.no_grad():
            for indices, batch in policy.batches(made, updater.micro_batch_tokens):
                computed["packed"] |= isinstance(batch, PackedBatch)
                tokens += batch.input_ids.numel()
                for i, row in zip(indices, policy.logprobs(batch), strict=True):
                    rows[i] = row[: len(made[i].completion_ids)]
        computed["tokens_shared" if on else "tokens_plain"] = tokens
        results.append((torch.cat(rows), updater.projection()))
    for name, plain, shared in zip(("logprobs", "gradient"), *results, strict=True):
        computed[f"{name}_difference"] = float((shared - plain).norm() / plain.norm())
    return computed


def main() -> None:
    """Measure every shape and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--width", type=positive, default=256)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="file that gets the JSON too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {name: measured(SHAPES[name], args) for name in args.shapes}
    result = {
        **{key: getattr(args, key) for key in ("rounds", "layers", "width", "threads", "device")},
        "shapes": found,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(result))
        return
    table = Table(
        "shape", "tokens", "shared", "update", "log-probabilities", "norms", "gradient off"
    )
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['tokens_plain']:,}",
            f"{row['tokens_shared']:,}" if row["packed"] else "no",
            *(f"{row[f'{key}_speedup']:.2f} x" for key in ("update", "logprobs", "norms")),
            f"{row['gradient_difference']:.1e}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
