"""Sampling with a prompt's keys and values held once, against a copy for each completion.

Policies, prompts and lengths are those of ``step.py``: the embedded task after its warm start, and
prompts of 256 tokens with completions of exactly 64. Both ways draw the same completions in turns, in
one process. The times are its CPU seconds, which other programs hardly change.

    python benchmarks/held_prompts.py [--json]
    python benchmarks/held_prompts.py --shapes long_prompts --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared import positive
from step_tasks import SHAPES, TASKS, configuration, of_shape

import dibs
from dibs.config import WarmStartConfig
from dibs.rollouts.sampling import SampleRequest, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView
from dibs.types import Completion


def measure(name: str, args: argparse.Namespace, view: PlainView) -> dict[str, Any]:
    """Both ways on one shape: CPU seconds, and how alike the completions are."""
    own = of_shape(args, name)
    with tempfile.TemporaryDirectory() as folder:
        task = TASKS[name](own, Path(folder), view)
        quiet = PlainView(Console(stderr=True, quiet=True))
        trainer = build_trainer(configuration(own, task, 0), quiet)
        trainer.source.verifier.close()
        policy = trainer.policy
        if not policy.holds_prompts:
            sys.exit(f"{name}: the policy does not hold prompts")
        requests = [
            SampleRequest(prompt, own.generations, (0, i))
            for i, prompt in enumerate(trainer.prompts.train[: own.prompts])
        ]
        sampler = TransformersSampler(policy, own.length, 10**6)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        drawn: dict[bool, list[Completion]] = {}
        for number in range(args.rounds + 1):
            for holds in (True, False) if number % 2 else (False, True):
                policy.holds_prompts = holds
                started = time.process_time()
                groups = collected(requests, sampler.sample(requests))
                seconds[holds].append(time.process_time() - started)
                drawn[holds] = [each for group in groups for each in group]
            view.preparing(f"rounds of {name}", number, args.rounds)
    pairs = list(zip(drawn[True], drawn[False], strict=True))
    equal = [(one, other) for one, other in pairs if one.token_ids == other.token_ids]
    once, each = (statistics.median(seconds[holds][1:]) for holds in (True, False))
    return {
        "held_once_seconds": once,
        "each_seconds": each,
        "speedup": statistics.median(
            a / b for a, b in zip(seconds[False][1:], seconds[True][1:], strict=True)
        ),
        "equal_completions": len(equal),
        "completions": len(pairs),
        "logprob_difference": max(
            abs(a - b)
            for one, other in equal
            for a, b in zip(one.sampling_logprobs, other.sampling_logprobs, strict=True)
        ),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=7, help="rounds after one to warm up")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--generations", type=positive, default=8, help="completions a prompt")
    parser.add_argument(
        "--layers", type=positive, help="layers of the policy, in place of a shape's"
    )
    parser.add_argument("--hidden-size", type=positive, help="its width, likewise")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="of its warm start",
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    args.warmup_steps, args.steps = 0, 1
    os.chdir(Path(__file__).resolve().parent)  # where the verifier's processes find ``coin``
    shapes = {name: measure(name, args, PlainView(Console(stderr=True))) for name in args.shapes}
    result = {
        "shapes": shapes,
        "settings": {
            "rounds": args.rounds,
            "generations": args.generations,
            "threads": args.threads,
        },
        "dibs": dibs.__version__,
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    table = Table("shape", "each completion, s", "once, s", "speedup", "equal", "ln p differs by")
    for name, row in shapes.items():
        table.add_row(
            name,
            f"{row['each_seconds']:.3f}",
            f"{row['held_once_seconds']:.3f}",
            f"{row['speedup']:.2f}",
            f"{row['equal_completions']} of {row['completions']}",
            f"{row['logprob_difference']:.1e}",
        )
    Console(width=104).print(table)


if __name__ == "__main__":
    main()
