"""Training steps of dibs against those of TRL's GRPOTrainer, in one run.

Both train the same policy with GRPO on the CPU in float32: the same weights, tokenizer, rows in the same
order, judge, loss, optimizer, number of rollouts and of optimizer updates a step, and most tokens a
completion. There are two shapes: the embedded task after its warm start, 64 prompts and 4 updates a
step; and prompts of 256 tokens with completions of exactly 64, 4 prompts and one update a step, a policy
with 4 layers of width 256 and random weights, and tosses of a coin as rewards.
 Neither evaluates, saves or logs. The learning rate is tiny, so the policy hardly
moves and both keep writing alike; the tokens of a rollout show it.

A round runs each side from the start, in turns: in every other round TRL goes first. A step is timed
from the end of the one before to its own end; the first ones are left out, and the median of the rest
counts. TRL runs with each of ``OPTIONS``; dibs is compared with the fastest by its median over rounds.
``speedup_vs_trl`` is the median over rounds of the ratio of rollouts/s within a round,
``speedup_vs_trl_long_prompts`` that of the second shape; ``cpu_speedup_vs_trl`` compares CPU seconds of
the trainers' processes, which other programs hardly change. In one thing the
sides differ by design: dibs leaves rollouts of advantage 0 out of the update, where they have no
gradient; ``learned`` is the share of the others.

The models are tiny: the ratio says how much each side does around the model, and nothing about GPUs or
about TRL with vLLM.

    make bench-step
    python benchmarks/step.py [--json]
    python benchmarks/step.py --shapes long_prompts --updates 4
    python benchmarks/step.py --without-trl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared import cpu_name, positive
from step_tasks import LEARNING_RATE, SHAPES, TASKS, Task, configuration, of_shape

import dibs
from dibs.config import WarmStartConfig
from dibs.data.curriculum import batches
from dibs.loop import Trainer
from dibs.runs.build import build_trainer
from dibs.runs.console import PlainView

HERE = Path(__file__).resolve().parent
# No faster: more micro-batches, a static cache, unfused AdamW, continuous batching, torch.compile.
OPTIONS: dict[str, dict[str, Any]] = {
    "TRL": {},
    "TRL, micro-batches": {"micro_batches": 2},
    "TRL, eager": {"attention": "eager"},
}
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "tokenizers")


def run_ours(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """What each of the first steps took and wrote."""
    records = trainer.run()
    recorded = []
    ended, spent = time.perf_counter(), time.process_time()
    for _ in range(steps):
        record = next(records)
        started, ended = ended, time.perf_counter()
        before, spent = spent, time.process_time()
        rollouts = [rollout for group in record.groups for rollout in group.rollouts]
        recorded.append(
            {
                "seconds": ended - started,
                "cpu_seconds": spent - before,
                "sample_seconds": record.metrics["sample_seconds"],
                "rollouts": len(rollouts),
                "tokens": sum(len(rollout.completion.token_ids) for rollout in rollouts),
                "accepted": sum(rollout.reward for rollout in rollouts),
                "learned": record.metrics["learned"],
            }
        )
    records.close()
    return recorded


def run_trl(python: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The same of TRL, for each of its options; and the versions it ran with."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(dibs.__file__).parents[1]),
        "OMP_NUM_THREADS": str(given["threads"]),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given.json")
        path.write_text(json.dumps(given), encoding="utf-8")
        done = subprocess.run(
            [python, HERE / "step_trl.py", path],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"the TRL side failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def has_trl(python: Path) -> bool:
    """Whether there is such a Python, with TRL installed."""
    code = "import importlib.util as u; raise SystemExit(u.find_spec('trl') is None)"
    return python.is_file() and subprocess.run([python, "-c", code], check=False).returncode == 0


def run_round(args: argparse.Namespace, task: Task, number: int) -> dict[str, Any]:
    """Both sides once; the round's number is the seed."""
    trainer = build_trainer(
        configuration(args, task, number), PlainView(Console(stderr=True, quiet=True))
    )
    steps = args.warmup_steps + args.steps
    drawn = islice(batches(trainer.prompts.train, args.prompts, number), steps)
    turns = number % len(args.options)
    names = args.options[turns:] + args.options[:turns]
    trl: dict[str, Any] = {"versions": {}, "runs": {}}
    given = {
        "model": task.model,
        "tosses": task.tosses,
        "rows": [{"prompt": p.text, "answer": p.answer} for prompts in drawn for p in prompts],
        "seed": number,
        "prompts": args.prompts,
        "generations": args.generations,
        "updates": args.updates,
        "steps": steps,
        "length": args.length,
        "threads": args.threads,
        "learning_rate": LEARNING_RATE,
        "options": {name: OPTIONS[name] for name in names},
    }
    trl_first = number % 2 == 1
    if trl_first and not args.without_trl:
        trl = run_trl(args.trl_python, given)
    ours = run_ours(trainer, steps)
    if not trl_first and not args.without_trl:
        trl = run_trl(args.trl_python, given)
    trainer.source.verifier.close()
    sides = {"dibs": ours, **{name: trl["runs"][name] for name in OPTIONS if name in trl["runs"]}}
    timed = {name: recorded[args.warmup_steps :] for name, recorded in sides.items()}
    return {
        "first": "TRL" if trl_first else "dibs",
        "trl_versions": trl["versions"],
        "sides": {name: summary(recorded) for name, recorded in timed.items()},
        "steps": timed,
    }


def summary(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Speed and means of a side's timed steps.

    Times are medians, which a busy moment of the machine hardly moves.
    """
    total = {key: sum(step[key] for step in steps) for key in steps[0]}
    seconds = statistics.median(step["seconds"] for step in steps)
    rollouts = total["rollouts"] / len(steps)
    row = {
        "rollouts_per_second": rollouts / seconds,
        "seconds_a_step": seconds,
        "cpu_seconds_a_step": statistics.median(step["cpu_seconds"] for step in steps),
        "sample_seconds_a_step": statistics.median(step["sample_seconds"] for step in steps),
        "rollouts_a_step": rollouts,
        "tokens_a_rollout": total["tokens"] / total["rollouts"],
        "accepted": total["accepted"] / total["rollouts"],
    }
    if "learned" in total:
        row["learned"] = total["learned"] / total["rollouts"]
    return row


def compare(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds of each side, and the ratio to TRL with its fastest options if it ran."""
    sides = {
        name: {
            key: statistics.median(each["sides"][name][key] for each in rounds) for key in numbers
        }
        for name, numbers in rounds[0]["sides"].items()
    }
    if sides.keys() == {"dibs"}:
        return {"sides": sides}
    fastest = max(sides.keys() - {"dibs"}, key=lambda name: sides[name]["rollouts_per_second"])
    ratios = [
        each["sides"]["dibs"]["rollouts_per_second"] / each["sides"][fastest]["rollouts_per_second"]
        for each in rounds
    ]
    lengths = [
        statistics.mean(each["sides"][name]["tokens_a_rollout"] for each in rounds)
        for name in ("dibs", fastest)
    ]
    of_cpu = [
        each["sides"][fastest]["cpu_seconds_a_step"] / each["sides"]["dibs"]["cpu_seconds_a_step"]
        for each in rounds
    ]
    return {
        "speedup_vs_trl": statistics.median(ratios),
        "cpu_speedup_vs_trl": statistics.median(of_cpu),
        "speedups": ratios,
        "trl_fastest": fastest,
        "tokens_a_rollout_over_trl": lengths[0] / lengths[1],
        "sides": sides,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of both sides")
    parser.add_argument("--steps", type=positive, default=6, help="timed steps of a round")
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps before them")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--prompts", type=positive, help="prompts a step, in place of a shape's")
    parser.add_argument("--generations", type=positive, default=8, help="completions a prompt")
    parser.add_argument("--updates", type=int, help="optimizer updates a step, likewise")
    parser.add_argument("--length", type=positive, help="tokens a completion at most, likewise")
    parser.add_argument("--hidden-size", type=positive, help="width of the policy, likewise")
    parser.add_argument("--layers", type=positive, help="layers of the policy, likewise")
    parser.add_argument(
        "--warm-start-updates",
        type=int,
        default=WarmStartConfig().updates,
        help="updates of the policy's warm start; fewer for a quick try",
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    parser.add_argument(
        "--trl-python",
        type=Path,
        default=HERE.parent / ".venv-trl/bin/python",
        metavar="FILE",
        help="a Python that has TRL",
    )
    parser.add_argument(
        "--options", nargs="+", choices=OPTIONS, default=[*OPTIONS], help="of TRL, all by default"
    )
    parser.add_argument(
        "--without-trl", action="store_true", help="time dibs alone, where there is no TRL"
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    for name in args.shapes:
        own = of_shape(args, name)
        halves = 2 * own.updates
        if own.prompts * own.generations % halves:
            parser.error(
                f"{name}: {own.prompts} prompts x {own.generations} rollouts cannot be dealt to "
                f"{own.updates} updates in two micro-batches each; make them a multiple of {halves}"
            )
    if not args.without_trl and not has_trl(args.trl_python):
        parser.exit(
            2,
            f"{args.trl_python} has no TRL; `make trl` builds .venv-trl. --without-trl times dibs "
            "alone\n",
        )
    return args


def measure(name: str, args: argparse.Namespace, view: PlainView) -> dict[str, Any]:
    """Both sides on one shape."""
    own = of_shape(args, name)
    with tempfile.TemporaryDirectory() as folder:
        task = TASKS[name](own, Path(folder), view)
        rounds = []
        for number in range(args.rounds):
            rounds.append(run_round(own, task, number))
            view.preparing(f"rounds of {name}", number + 1, args.rounds)
    left_out = ("json", "trl_python", "shapes")
    return {
        **compare(rounds),
        "settings": {key: value for key, value in vars(own).items() if key not in left_out},
        "trl_versions": rounds[0]["trl_versions"],
        "rounds": [
            {key: value for key, value in each.items() if key != "trl_versions"} for each in rounds
        ],
    }


def main() -> None:
    """Run and print."""
    args = arguments()
    os.chdir(HERE)  # where the verifier's processes find ``coin``
    shapes = {name: measure(name, args, PlainView(Console(stderr=True))) for name in args.shapes}
    keys = {"embedded": "speedup_vs_trl", "long_prompts": "speedup_vs_trl_long_prompts"}
    result = {
        **{
            keys[name]: row["speedup_vs_trl"]
            for name, row in shapes.items()
            if "speedup_vs_trl" in row
        },
        "shapes": shapes,
        "learning_rate": LEARNING_RATE,
        "dtype": "float32",
        "device": "cpu",
        "trl_options": OPTIONS,
        "hardware": cpu_name(),
        "versions": {"dibs": dibs.__version__, **{name: version(name) for name in PACKAGES}},
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for name, row in shapes.items():
        print_table(name, row)


def print_table(name: str, result: dict[str, Any]) -> None:
    """For people."""
    settings = result["settings"]
    console = Console(width=104)
    console.print(
        f"{name}: {cpu_name()}, {settings['threads']} threads, float32; {settings['layers']} layers of "
        f"width {settings['hidden_size']}; {settings['prompts']} prompts x {settings['generations']} "
        f"completions of at most {settings['length']} tokens, {settings['updates']} updates a step; "
        f"medians of {settings['rounds']} rounds of {settings['steps']} steps; "
        f"TRL {result['trl_versions'].get('trl', 'left out')}",
        highlight=False,
    )
    table = Table(
        "", "rollouts/s", "s/step", "to sample", "tokens", "accepted", "in update", "ratio"
    )
    ours = result["sides"]["dibs"]["rollouts_per_second"]
    for side, row in result["sides"].items():
        ratio = ours / row["rollouts_per_second"]
        if side == result.get("trl_fastest"):
            ratio = result["speedup_vs_trl"]
        table.add_row(
            side,
            f"{row['rollouts_per_second']:.0f}",
            f"{row['seconds_a_step']:.3f}",
            f"{row['sample_seconds_a_step']:.3f}",
            f"{row['tokens_a_rollout']:.2f}",
            f"{row['accepted']:.3f}",
            f"{row.get('learned', 1):.2f}",
            "" if side == "dibs" else f"{ratio:.2f}",
        )
    console.print(table)
    if "speedups" not in result:
        return
    low, high = min(result["speedups"]), max(result["speedups"])
    console.print(
        f"{result['speedup_vs_trl']:.2f} times {result['trl_fastest']!r} ({low:.2f} to {high:.2f} over "
        f"rounds; {result['cpu_speedup_vs_trl']:.2f} by CPU seconds); tokens a rollout: "
        f"{result['tokens_a_rollout_over_trl']:.3f} of TRL's",
        highlight=False,
    )


if __name__ == "__main__":
    main()
