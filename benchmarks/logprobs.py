"""Peak memory of log-probabilities and their gradient, block by block and with all logits at once.

The naive form holds all logits in float32 and lets autograd keep what it needs; ours is what
updates use. Both compute log-probabilities and entropies of the same tokens and the gradient at hidden
states and weights. Each runs in a process of its own, whose peak resident memory is read before and
after; gradient buffers exist before. Values are compared in a third.

    python benchmarks/logprobs.py [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from shared import positive
from torch import Tensor, nn

from dibs.model.token_logprobs import full_logprobs, token_logprobs

TEMPERATURE = 0.9


def problem(args: argparse.Namespace) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Hidden states, output layer, tokens, and what the log-probabilities are weighed with."""
    torch.manual_seed(0)
    layer = nn.Linear(args.hidden_size, args.vocabulary, bias=False)
    hidden = torch.randn(args.rows, args.length, args.hidden_size, requires_grad=True)
    for tensor in (hidden, layer.weight):
        tensor.grad = torch.zeros_like(tensor)
    tokens = torch.randint(args.vocabulary, (args.rows, args.length))
    return hidden, layer, tokens, torch.randn(args.rows, args.length)


def run(form: str, hidden: Tensor, layer: nn.Linear, tokens: Tensor, slopes: Tensor) -> Tensor:
    """Log-probabilities; gradients are added to ``.grad``."""
    if form == "blocks":
        logprobs, _ = token_logprobs(hidden, layer, tokens, TEMPERATURE)
    else:
        logprobs, _ = full_logprobs(layer(hidden) / TEMPERATURE, tokens)
    (logprobs * slopes).sum().backward()
    return logprobs.detach()


def peak() -> int:
    """Most resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(args: argparse.Namespace) -> None:
    """In a process of its own: one form, or both and how far they are apart."""
    torch.set_num_threads(args.threads)
    hidden, layer, tokens, slopes = problem(args)
    if args.form == "compare":
        results = []
        for form in ("naive", "blocks"):
            for tensor in (hidden, layer.weight):
                tensor.grad.zero_()
            values = run(form, hidden, layer, tokens, slopes)
            results.append([values, hidden.grad.clone(), layer.weight.grad.clone()])
        names = ("logprobs", "gradient_hidden", "gradient_weight")
        print(
            json.dumps(
                {
                    name: float((a - b).abs().max())
                    for name, a, b in zip(names, *results, strict=True)
                }
            )
        )
        return
    before = peak()
    started = time.perf_counter()
    run(args.form, hidden, layer, tokens, slopes)
    print(json.dumps({"extra_bytes": peak() - before, "seconds": time.perf_counter() - started}))


def main() -> None:
    """Run every form in its process and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=positive, default=150_000)
    parser.add_argument("--rows", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=1024)
    parser.add_argument("--hidden-size", type=positive, default=896)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--form", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        child(args)
        return
    found = {}
    for form in ("naive", "blocks", "compare"):
        words = [arg for arg in sys.argv[1:] if arg != "--json"]
        command = [sys.executable, __file__, *words, "--form", form]
        found[form] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "form")}
    naive = found["naive"]["extra_bytes"]
    result = {
        **settings,
        **found,
        # None where the problem is too small to raise the peak.
        "memory_ratio": found["blocks"]["extra_bytes"] / naive if naive else None,
        "torch": torch.__version__,
    }
    if args.json:
        print(json.dumps(result))
        return
    table = Table("form", "extra peak memory", "seconds")
    for form in ("naive", "blocks"):
        row = found[form]
        table.add_row(form, f"{row['extra_bytes'] / 2**20:,.0f} MiB", f"{row['seconds']:.1f}")
    console = Console()
    console.print(table)
    differences = ", ".join(f"{name} {value:.1e}" for name, value in found["compare"].items())
    if naive:
        console.print(f"{result['memory_ratio']:.1%} of the naive form's memory")
    console.print(f"largest differences: {differences}")


if __name__ == "__main__":
    main()
