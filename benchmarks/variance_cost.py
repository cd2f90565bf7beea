"""What `dibs variance` takes to measure gradients, over a forward and backward pass of the same tokens.

A random Qwen2 of 100 million parameters, random prompts and completions, and rewards that are tosses of
a coin. The plain pass adds up the gradients of all completions with the micro-batches that cost least,
as an update does. The meter measures the same groups twice: for an objective with a baseline, whose sums
of gradients are two a prompt, and for one without, whose sum is over accepted completions. All three run
in turn, `--rounds` times; ratios are medians over rounds of the ratio within a round. CPU seconds of the
process are compared beside seconds, since other programs of a busy machine hardly change them. Sampling
is no part of it. Fewer prompts have nearly the same ratio.

    python benchmarks/variance_cost.py [--json]
    python benchmarks/variance_cost.py --prompts 8 --rounds 3
    python benchmarks/variance_cost.py --size tiny --prompts 2 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import transformers
from grad_norms import PadTokenizer, plain_pass
from rich.console import Console
from rich.table import Table
from shared import cpu_name, positive
from transformers import AutoModelForCausalLM, Qwen2Config

from dibs.config import Config
from dibs.model.policy import Policy
from dibs.rollouts.source import RolloutSource
from dibs.training.measured_gradients import GradientSource
from dibs.training.rollout_gradients import RolloutGradients
from dibs.types import Completion, Group, Prompt, Rollout

SIZES = {
    "100m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32768,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "tie_word_embeddings": True,
    },
}
OBJECTIVES = {"with a baseline": "grpo", "without": "log_likelihood"}


def build_policy(args: argparse.Namespace) -> Policy:
    """Random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SIZES[args.size]))
    return Policy(model.eval(), PadTokenizer())


def draw_groups(args: argparse.Namespace) -> list[Group]:
    """Random tokens; completions of half the length up to the whole."""
    rng, vocabulary = np.random.default_rng(0), SIZES[args.size]["vocab_size"]

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(1, vocabulary, count).tolist())

    groups = []
    for i in range(args.prompts):
        prompt = Prompt(f"{i}", "", tokens(args.context), "")
        rollouts = []
        for _ in range(args.generations):
            count = int(rng.integers(args.length // 2, args.length + 1))
            written = Completion(tokens(count), "", (0.0,) * count, True)
            reward = int(rng.integers(2))
            rollouts.append(Rollout(prompt, written, float(reward), "", bool(reward)))
        groups.append(Group(prompt, tuple(rollouts)))
    return groups


def meter_of(policy: Policy, objective: str, args: argparse.Namespace) -> GradientSource:
    """The part of a run that measures gradients."""
    config = Config.model_validate(
        {
            "policy": {"model": "random"},
            "data": {"train": "random"},
            "algorithm": {"name": "grpo", "objective": objective}
            if objective == "grpo"
            else {"objective": objective},
            "update": {"micro_batch_tokens": args.micro_batch_tokens},
        }
    )
    gradients = RolloutGradients(policy, config)
    return GradientSource(config, policy, cast(RolloutSource, None), gradients)


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of one run."""
    started, spent = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - spent


def compared(
    policy: Policy, groups: Sequence[Group], args: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of each way in each round."""
    examples = [rollout.example() for group in groups for rollout in group.rollouts]
    ways: dict[str, Callable[[], Any]] = {
        "plain pass": lambda: plain_pass(policy, examples, args.micro_batch_tokens)
    }
    for name, objective in OBJECTIVES.items():
        meter = meter_of(policy, objective, args)
        ways[name] = lambda meter=meter: meter.measured(groups)
    few = groups[:1]
    plain_pass(policy, [rollout.example() for rollout in few[0].rollouts], args.micro_batch_tokens)
    meter_of(policy, "grpo", args).measured(few)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, run in ways.items():
            taken[name].append(seconds(run))
    return taken


def ratio(taken: dict[str, list[tuple[float, float]]], name: str, clock: int) -> float:
    """Median over rounds of a way's time over the plain pass's, by seconds (0) or CPU seconds (1)."""
    pairs = zip(taken[name], taken["plain pass"], strict=True)
    return statistics.median(own[clock] / plain[clock] for own, plain in pairs)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="100m", help="the model")
    parser.add_argument("--prompts", type=positive, default=64, help="prompts; 2 or more")
    parser.add_argument("--generations", type=positive, default=16, help="completions of each")
    parser.add_argument("--context", type=positive, default=32, help="tokens of a prompt")
    parser.add_argument(
        "--length", type=positive, default=32, help="tokens of the longest completion"
    )
    parser.add_argument("--micro-batch-tokens", type=positive, default=2048, help="of both ways")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds after a warm-up")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    policy, groups = build_policy(args), draw_groups(args)
    taken = compared(policy, groups, args)
    result = {
        "meter_over_plain_pass": ratio(taken, "with a baseline", 0),
        "meter_over_plain_pass_cpu": ratio(taken, "with a baseline", 1),
        "meter_without_baseline_over_plain_pass": ratio(taken, "without", 0),
        "meter_without_baseline_over_plain_pass_cpu": ratio(taken, "without", 1),
        "seconds": {name: statistics.median(each[0] for each in taken[name]) for name in taken},
        "cpu_seconds": {name: statistics.median(each[1] for each in taken[name]) for name in taken},
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "tokens": sum(
            len(r.prompt.token_ids) + len(r.completion.token_ids)
            for group in groups
            for r in group.rollouts
        ),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "settings": vars(args),
        "hardware": cpu_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result, indent=1)) if args.json else print_table(result)


def print_table(result: dict[str, Any]) -> None:
    """For people."""
    settings = result["settings"]
    console = Console()
    console.print(
        f"{result['hardware']}, {settings['threads']} threads; {result['parameters'] / 1e6:.1f}M "
        f"parameters, {settings['prompts']} prompts x {settings['generations']} completions, "
        f"{result['tokens']} tokens; at most {result['peak_gib']:.1f} GiB of memory"
    )
    table = Table("way", "seconds (median)", "CPU seconds", "over the plain pass", "by CPU seconds")
    keys = {"with a baseline": "meter_over_", "without": "meter_without_baseline_over_"}
    for name, taken in result["seconds"].items():
        over = [
            f"{result[keys[name] + 'plain_pass' + clock]:.2f}" if name in keys else "1"
            for clock in ("", "_cpu")
        ]
        label = f"meter, {name}" if name in keys else name
        table.add_row(label, f"{taken:.2f}", f"{result['cpu_seconds'][name]:.2f}", *over)
    console.print(table)


if __name__ == "__main__":
    main()
