"""Cost of per-sample gradient norms, against one plain forward and backward pass of the same batch.

Every way runs on the same model and samples, in turn, ``--rounds`` times; ratios are medians over rounds
of the ratio within a round. All norms but those of ``last_layer`` and of the sketch are compared with
one-at-a-time autograd.

    python benchmarks/grad_norms.py [--json]
    python benchmarks/grad_norms.py --preset short --samples 8 --rounds 1
    python benchmarks/grad_norms.py --preset 0.5b --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from shared import cpu_name, positive
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from dibs.model.batching import micro_batches
from dibs.model.forward_pass import completion_logits
from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.model.token_logprobs import full_logprobs
from dibs.types import TrainingExample

PRESETS = {
    "small": {
        "model": {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 8192,
            "tie_word_embeddings": False,
        },
        "samples": 64,
        "tokens": (128, 256),
        "prompt": (24, 48),
        "max_tokens": 1024,  # where the floor is fastest on two cores
        "sketch": 2048,
    },
    "short": {  # the embedded task's policy
        "model": {
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 48,
            "tie_word_embeddings": False,
        },
        "samples": 512,
        "tokens": (16, 32),
        "prompt": (6, 14),
        "max_tokens": 4096,
        "sketch": 16,
    },
    "0.5b": {
        "model": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "samples": 64,
        "tokens": (1024, 1024),
        "prompt": (128, 128),
        "max_tokens": 16384,
        "sketch": 4096,
    },
}


class PadTokenizer:
    """All that a policy asks of a tokenizer here."""

    pad_token_id = eos_token_id = 0


@dataclass(frozen=True)
class Outcome:
    """Seconds of one run, its norms (None: it gives none) and peak memory on a GPU, in bytes."""

    seconds: float
    norms: np.ndarray | None
    peak: int


def build_policy(preset: dict, device: str, dtype: torch.dtype) -> Policy:
    """A random Qwen2."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**preset["model"]), dtype=dtype)
    return Policy(model.to(device).eval(), PadTokenizer())


def draw_samples(preset: dict, count: int) -> list[TrainingExample]:
    """Random tokens; lengths uniform in the preset's ranges."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        length, prompt = rng.randint(*preset["tokens"]), rng.randint(*preset["prompt"])
        ids = tuple(rng.randrange(1, preset["model"]["vocab_size"]) for _ in range(length))
        made.append(TrainingExample(ids[:prompt], ids[prompt:], 0.0, 0.0))
    return made


def plain_pass(policy: Policy, samples: Sequence[TrainingExample], max_tokens: int) -> None:
    """The floor: forward and backward of the batch, gradients of all parameters summed."""
    for indices in micro_batches(samples, max_tokens):
        policy.logprobs(policy.collate([samples[i] for i in indices])).sum().backward()
    policy.model.zero_grad()


def one_at_a_time(
    policy: Policy, samples: Sequence[TrainingExample], norm: Callable[[nn.Module], float]
) -> np.ndarray:
    """A full backward pass for each sample, and a norm of the gradients it leaves in the model."""
    norms = []
    for sample in samples:
        policy.logprobs(policy.collate([sample])).sum().backward()
        norms.append(norm(policy.model))
        policy.model.zero_grad()
    return np.array(norms)


def total_norm(module: nn.Module) -> float:
    """Over all parameters of a module, in its dtype."""
    return nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()


def output_layer_norm(model: nn.Module) -> float:
    """Over the output layer."""
    return total_norm(model.get_output_embeddings())


def accurate_norm(model: nn.Module) -> float:
    """Over all parameters, with squares added up in float64, which millions of them need."""
    return sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5


def opacus_norms(policy: Policy, samples: Sequence[TrainingExample], max_tokens: int) -> np.ndarray:
    """Ghost clipping's norms. Raises NotImplementedError for tied embeddings."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model = policy.model.train()
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", strict=False, use_ghost_clipping=True
    )
    norms = np.zeros(len(samples))
    try:
        for indices in micro_batches(samples, max_tokens):
            batch = policy.collate([samples[i] for i in indices])
            # The wrapper is called for its logits: it hides the model's decoder and output layer.
            logits = completion_logits(wrapped, batch).float() / policy.temperature
            logprobs, _ = full_logprobs(logits, batch.completion_ids)
            logprobs.masked_fill(~batch.completion_mask, 0.0).sum().backward()
            norms[indices] = wrapped.get_norm_sample().detach().float().cpu().numpy()
            wrapped.zero_grad()
    finally:
        wrapped.to_standard_module()
        model.eval()
    return norms


def measure(run: Callable[[], np.ndarray | None], device: str) -> Outcome:
    """Time one run."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    norms = run()
    if device == "cuda":
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Outcome(time.perf_counter() - started, norms, peak)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative error."""
    return float(np.max(np.abs(got - expected) / expected))


def ways(policy: Policy, samples: Sequence[TrainingExample], preset: dict) -> dict[str, Callable]:
    """Every way to run, by name."""
    tokens = preset["max_tokens"]

    def ours(method: str, **options) -> Callable[[], np.ndarray]:
        return lambda: gradient_norms(policy, samples, method, max_tokens=tokens, **options).norms

    return {
        "floor": lambda: plain_pass(policy, samples, tokens),
        "one_at_a_time_one_layer": lambda: one_at_a_time(policy, samples, output_layer_norm),
        "one_at_a_time": lambda: one_at_a_time(policy, samples, total_norm),
        "opacus": lambda: opacus_norms(policy, samples, tokens),
        "exact": ours("exact"),
        "last_layer": ours("last_layer"),
        "last_layer_sketch": ours("last_layer", sketch=preset["sketch"]),
    }


def compare(policy: Policy, preset: dict, device: str, rounds: int) -> tuple[dict, dict]:
    """Outcomes of every way, one list each, and why a way does not apply."""
    samples = draw_samples(preset, preset["samples"])
    running = ways(policy, samples, preset)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in running}
    absent = {}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name, run in list(running.items()):
            try:
                outcome = measure(run, device)
            except (ImportError, NotImplementedError) as error:
                absent[name] = str(error)
                del running[name], outcomes[name]
                continue
            if turn:
                outcomes[name].append(outcome)
    return outcomes, absent


def ratio(outcomes: dict[str, list[Outcome]], upper: str, lower: str) -> float | None:
    """Median over rounds of one way's seconds over another's."""
    if upper not in outcomes:
        return None
    pairs = zip(outcomes[upper], outcomes[lower], strict=True)
    return statistics.median(a.seconds / b.seconds for a, b in pairs)


def growth(policy: Policy, preset: dict, device: str) -> dict[str, dict[str, float]]:
    """Microseconds a token for a quarter, half and all of the samples; best of three."""
    table: dict[str, dict[str, float]] = {}
    for share in (4, 2, 1):
        samples = draw_samples(preset, preset["samples"] // share)
        tokens = sum(len(s.context_ids) + len(s.completion_ids) for s in samples)
        running = ways(policy, samples, preset)
        table[str(tokens)] = {
            name: min(measure(running[name], device).seconds for _ in range(3)) / tokens * 1e6
            for name in ("floor", "exact", "last_layer")
        }
    return table


def errors(policy: Policy, preset: dict, outcomes: dict[str, list[Outcome]]) -> dict:
    """Largest relative errors: against autograd, or against the exact form of the same thing."""
    samples = draw_samples(preset, preset["samples"])
    expected = one_at_a_time(policy, samples, accurate_norm)
    last = outcomes["last_layer"][0].norms
    sketched = outcomes["last_layer_sketch"][0].norms
    half = copy.deepcopy(policy.model).to(torch.bfloat16)
    rounded = Policy(copy.deepcopy(half).float(), policy.tokenizer)
    few = samples[:16]
    in_half = gradient_norms(Policy(half, policy.tokenizer), few, max_tokens=preset["max_tokens"])
    return {
        "max_relative_error": relative_error(outcomes["exact"][0].norms, expected),
        "max_relative_error_opacus": (
            relative_error(outcomes["opacus"][0].norms, expected) if "opacus" in outcomes else None
        ),
        "max_relative_error_sketch": relative_error(sketched, last),
        "rms_relative_error_sketch": float(np.sqrt(np.mean((sketched / last - 1) ** 2))),
        "max_relative_error_bfloat16": relative_error(
            in_half.norms, one_at_a_time(rounded, few, accurate_norm)
        ),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="small", help="model and samples")
    parser.add_argument(
        "--samples", type=positive, help="samples in place of the preset's, at least 4"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="rounds after the warm-up")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--vocabulary", type=positive, help="another vocabulary size")
    parser.add_argument("--tied", action="store_true", help="tie input and output embeddings")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    preset = copy.deepcopy(PRESETS[args.preset])
    preset["samples"] = args.samples or preset["samples"]
    preset["model"]["vocab_size"] = args.vocabulary or preset["model"]["vocab_size"]
    preset["model"]["tie_word_embeddings"] |= args.tied
    policy = build_policy(preset, args.device, getattr(torch, args.dtype))

    outcomes, absent = compare(policy, preset, args.device, args.rounds)
    result = {
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
        "threads": args.threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "dtype": args.dtype,
        "preset": preset,
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "seconds": {
            name: statistics.median(each.seconds for each in outcomes[name]) for name in outcomes
        },
        "exact_over_floor": ratio(outcomes, "exact", "floor"),
        "exact_speedup_over_one_at_a_time": ratio(outcomes, "one_at_a_time", "exact"),
        "floor_speedup_over_one_at_a_time": ratio(outcomes, "one_at_a_time", "floor"),
        "last_layer_over_floor": ratio(outcomes, "last_layer", "floor"),
        "last_layer_sketch_over_floor": ratio(outcomes, "last_layer_sketch", "floor"),
        "opacus_over_floor": ratio(outcomes, "opacus", "floor"),
        "does_not_apply": absent,
        **errors(policy, preset, outcomes),
        "microseconds_per_token": growth(policy, preset, args.device),
    }
    if args.device == "cuda":
        result["peak_bytes"] = {name: outcomes[name][0].peak for name in outcomes}
        floor = result["peak_bytes"]["floor"]
        result["exact_extra_memory"] = result["peak_bytes"]["exact"] / floor - 1
    else:
        result["arithmetic_bound"] = arithmetic_bound(policy, preset)
    print(json.dumps(result, indent=2)) if args.json else print_tables(result)


def arithmetic_bound(policy: Policy, preset: dict) -> dict[str, float]:
    """How fast any way that multiplies every weight three times could be, given this CPU's matmul."""
    left, right = torch.randn(2, 1024, 1024)
    left @ right
    started = time.perf_counter()
    for _ in range(20):
        left @ right
    rate = 20 * 2 * 1024**3 / (time.perf_counter() - started)
    lookup = policy.model.get_input_embeddings().weight.numel()
    if preset["model"]["tie_word_embeddings"]:
        lookup = 0
    matrices = sum(p.numel() for p in policy.model.parameters() if p.ndim > 1) - lookup
    tokens = sum(
        len(s.context_ids) + len(s.completion_ids) for s in draw_samples(preset, preset["samples"])
    )
    return {"matmul_flops_per_second": rate, "seconds": 6 * matrices * tokens / rate}


def print_tables(result: dict) -> None:
    """For people."""
    console = Console()
    preset = result["preset"]
    console.print(
        f"{result['hardware']}, {result['threads']} threads, {result['dtype']}; "
        f"{result['parameters'] / 1e6:.1f}M parameters, {preset['samples']} samples of "
        f"{preset['tokens'][0]} to {preset['tokens'][1]} tokens, vocabulary "
        f"{preset['model']['vocab_size']}"
    )
    table = Table("way", "seconds (median)", "over the floor")
    for name, seconds in result["seconds"].items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / result['seconds']['floor']:.2f}")
    for name, reason in result["does_not_apply"].items():
        table.add_row(name, "-", reason)
    console.print(table)
    for name, value in result.items():
        if isinstance(value, float):
            console.print(f"{name}: {value:.3g}")
    if "arithmetic_bound" in result:
        bound = result["arithmetic_bound"]["seconds"]
        most = result["seconds"]["one_at_a_time"] / bound
        console.print(
            f"matmul alone needs {bound:.2f} s for one forward and backward pass, so nothing that does "
            f"its arithmetic can be more than {most:.1f} times faster than one at a time"
        )
    table = Table("tokens", *next(iter(result["microseconds_per_token"].values())))
    for tokens, row in result["microseconds_per_token"].items():
        table.add_row(tokens, *(f"{value:.0f} us/token" for value in row.values()))
    console.print(table)


if __name__ == "__main__":
    main()
