"""Sampling, updates and gradient norms of large models on one GPU: tokens/s, MFU, cost of estimation.

Random Qwen2 models of 0.5 and 1.5 billion parameters, random prompts, and rewards that are tosses of a
coin. In each round a step is taken apart and timed: sampling with the transformers engine, one optimizer
update, exact norms in a pass of their own, one update that measures norms itself (`grad_norm update`),
and the gradients of the variance meter. Numbers are medians over rounds, after a warm-up. MFU is six
times the multiplied weights times the tokens, over the seconds and the card's dense bfloat16 peak;
attention is not counted. Updates compute a prompt once for its completions, as those of `dibs train` do
(`prompts_shared` says so); tokens and MFU count it for each. Where a Python has TRL (`--trl-python`),
its steps of the same shape are timed.

    python benchmarks/gpu.py [--json]
    python benchmarks/gpu.py --size 0.5b
    python benchmarks/gpu.py --device cpu --size tiny

Keep the output of --json in `benchmarks/results/`, with the card in the file's name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from grad_norms import PRESETS
from rich.console import Console
from rich.table import Table
from shared import cpu_name, positive
from transformers import AutoModelForCausalLM, Qwen2Config
from variance_cost import meter_of

from dibs.config import UpdateConfig
from dibs.data.arithmetic import MODULUS
from dibs.model.grad_norms import gradient_norms
from dibs.model.policy import Policy
from dibs.model.warm_start import build_tokenizer
from dibs.rollouts.sampling import SampleRequest, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.training.losses import PolicyLoss
from dibs.training.norm_sample import NormSample
from dibs.training.sharing_check import made_up_examples, try_sharing
from dibs.training.updater import Updater
from dibs.types import Completion, Group, Prompt, Rollout

FOLDER = Path(__file__).resolve().parent
SIZES: dict[str, dict[str, Any]] = {
    "0.5b": PRESETS["0.5b"]["model"],
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "tie_word_embeddings": True,
    },
}
PEAKS = {
    "B200": 2250,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 6000 Ada": 364,
    "4090": 165,
    "A10": 125,
    "L4": 121,
}
"""Dense bfloat16 Tflop/s by a part of the card's name; the first that fits counts."""


def build_policy(size: str, args: argparse.Namespace) -> Policy:
    """Random weights; one token in the vocabulary ends a completion, so most are of full length."""
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES[size], eos_token_id=None, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    return Policy(model.to(args.device).eval(), build_tokenizer())


def draw_prompts(policy: Policy, args: argparse.Namespace) -> list[Prompt]:
    """Random numbers of the embedded task's tokenizer, each with a sign of equality after it."""
    numbers = np.random.default_rng(0).integers(MODULUS, size=(args.prompts, args.context // 2))
    texts = ["=".join(map(str, row)) + "=" for row in numbers]
    return [
        Prompt(f"{i}", text, tuple(policy.tokenizer(text).input_ids), "")
        for i, text in enumerate(texts)
    ]


def judged(prompts: Sequence[Prompt], written: Sequence[Sequence[Completion]]) -> list[Group]:
    """Groups with rewards that are tosses of a coin."""
    rng = np.random.default_rng(0)
    groups = []
    for prompt, completions in zip(prompts, written, strict=True):
        tosses = rng.integers(2, size=len(completions))
        rollouts = [
            Rollout(prompt, completion, float(toss), "", bool(toss))
            for completion, toss in zip(completions, tosses, strict=True)
        ]
        groups.append(Group(prompt, tuple(rollouts)))
    return groups


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    made = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, made


def one_round(policy: Policy, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the parts of a step, and its tokens."""
    prompts = draw_prompts(policy, args)
    sampler = TransformersSampler(policy, args.length, args.batch_tokens)
    requests = [SampleRequest(each, args.generations, (0, i)) for i, each in enumerate(prompts)]
    sampling, written = timed(lambda: collected(requests, sampler.sample(requests)), args.device)
    groups = judged(prompts, written)
    weight = 1 / (args.prompts * args.generations)
    examples = [
        rollout.example(2 * rollout.reward - 1, weight)
        for group in groups
        for rollout in group.rollouts
    ]
    config = UpdateConfig(
        updates_per_step=1, learning_rate=1e-8, micro_batch_tokens=args.micro_batch_tokens
    )
    updater = Updater(policy, PolicyLoss(clip=None), config, 10)
    sample = NormSample.of([example.advantage > 0 for example in examples], None)
    meter = meter_of(policy, "grpo", args)
    seconds = {"sampling": sampling}
    ways: dict[str, Callable[[], Any]] = {
        "update": lambda: updater.step(examples),
        "norms": lambda: gradient_norms(policy, examples, max_tokens=args.micro_batch_tokens),
        "update with norms": lambda: updater.step(examples, sample),
        "variance meter": lambda: meter.measured(groups),
    }
    for name, run in ways.items():
        seconds[name] = timed(run, args.device)[0]
    new = sum(len(each.completion_ids) for each in examples)
    return {
        **seconds,
        "sampled_tokens": new,
        "tokens": new + sum(len(each.context_ids) for each in examples),
    }


def matrices(policy: Policy) -> int:
    """Weights that every token is multiplied with: all but a table that is looked up."""
    model = policy.model
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    table = 0 if tied else model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.parameters() if p.ndim > 1) - table


def measured(size: str, args: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    """What a size gives: seconds, tokens/s, MFU, and the share of a step spent on estimation."""
    policy = build_policy(size, args)
    contexts = [prompt.token_ids for prompt in draw_prompts(policy, args)[:3]]
    alone = try_sharing(policy, made_up_examples(contexts, args.length))
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds = [one_round(policy, args) for _ in range(args.rounds + 1)][1:]
    row = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    tokens, flops = row.pop("tokens"), 6 * matrices(policy)
    sampled = row.pop("sampled_tokens")
    step = row["sampling"] + row["update"]
    of_update = max(row["update with norms"] - row["update"], 0.0)
    result = {
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "prompts_shared": "yes" if alone is None else f"no: {alone}",
        "seconds": row,
        "sampled_tokens_per_second": sampled / row["sampling"],
        "update_tokens_per_second": tokens / row["update"],
        "norms_tokens_per_second": tokens / row["norms"],
        "update_mfu": None if peak is None else flops * tokens / row["update"] / peak,
        "norms_mfu": None if peak is None else flops * tokens / row["norms"] / peak,
        "estimation_share_exact": row["norms"] / (step + row["norms"]),
        "estimation_share_update": of_update / (step + of_update),
        "norms_over_update": row["norms"] / row["update"],
        "meter_over_update": row["variance meter"] / row["update"],
        "step_seconds": step,
        "trl": None,
    }
    if args.device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if has_trl(args.trl_python):
        with tempfile.TemporaryDirectory() as folder:
            policy.save(Path(folder) / "model")
            texts = [prompt.text for prompt in draw_prompts(policy, args)]
            del policy
            if args.device == "cuda":
                torch.cuda.empty_cache()
            result["trl"] = of_trl(args, Path(folder), texts, step)
    return result


def has_trl(python: Path) -> bool:
    """Whether a Python can import TRL."""
    words = [str(python), "-c", "import trl"]
    if not python.is_file():
        return False
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def of_trl(
    args: argparse.Namespace, folder: Path, texts: Sequence[str], step: float
) -> dict[str, Any]:
    """TRL's seconds a step for the same model and shape; the reason where it failed."""
    keys = ("device", "dtype", "generations", "length", "rounds")
    given = {key: getattr(args, key) for key in keys}
    (folder / "given.json").write_text(json.dumps({**given, "prompts": texts}), encoding="utf-8")
    words = [str(args.trl_python), str(FOLDER / "gpu_trl.py"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"failed": (done.stderr.strip() or "no output").splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "step_seconds_over_ours": found["step_seconds"] / step}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["0.5b", "1.5b"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--prompts", type=positive, default=16, help="prompts a step, 2 or more")
    parser.add_argument("--generations", type=positive, default=8, help="completions a prompt")
    parser.add_argument("--context", type=positive, default=128, help="tokens of a prompt, even")
    parser.add_argument("--length", type=positive, default=128, help="tokens of a completion")
    parser.add_argument("--micro-batch-tokens", type=positive, default=16384)
    parser.add_argument("--batch-tokens", type=positive, default=2**17, help="of sampling")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds after a warm-up")
    parser.add_argument("--peak-tflops", type=float, help="of a card that is not known")
    own = FOLDER.parent / ".venv-trl/bin/python"
    parser.add_argument("--trl-python", type=Path, default=own, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --size tiny tries the script out")
    return args


def main() -> None:
    """Run and print."""
    args = arguments()
    warnings.simplefilter("ignore")
    name = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    known = args.peak_tflops or next((v for k, v in PEAKS.items() if k in name), None)
    progress, sizes = Console(stderr=True), {}
    for size in args.size:
        progress.print(f"{size}: {args.rounds + 1} rounds", highlight=False)
        sizes[size] = measured(size, args, None if known is None else known * 1e12)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {
        "hardware": name,
        "peak_tflops": known,
        "versions": versions,
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()},
        "sizes": sizes,
    }
    print(json.dumps(result, indent=1)) if args.json else print_table(result)


def print_table(result: dict[str, Any]) -> None:
    """For people."""
    console = Console()
    console.print(f"{result['hardware']}, torch {result['versions']['torch']}", highlight=False)
    table = Table("", *result["sizes"])
    for key in next(iter(result["sizes"].values())):
        cells = [row[key] for row in result["sizes"].values()]
        for name in cells[0] if isinstance(cells[0], dict) else [None]:
            shown = [cell if name is None else (cell or {}).get(name) for cell in cells]
            label = key if name is None else f"{key}: {name}"
            table.add_row(
                label, *(f"{v:.3g}" if isinstance(v, int | float) else str(v) for v in shown)
            )
    console.print(table)


if __name__ == "__main__":
    main()
