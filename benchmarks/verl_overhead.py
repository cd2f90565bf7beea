"""What the plug-in costs a training step of verl, at uniform counts, where it changes nothing.

One run of verl on the CPU, of which half the steps are the stock trainer's (``verl_alternate``): the
same process, policy and prompts, and the same moments of a busy machine. Medians of the steps' times by
verl's own clock; the first two steps are left out. The policy is tiny, so a step is mostly what verl
does around it, 2 s of that waiting for the rollout between two looks; ``overhead_of_work`` leaves the
wait out. ``overhead_low`` and ``_high``: 95% by the bootstrap.

    make bench-verl
    .venv-verl/bin/python benchmarks/verl_overhead.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from shared import positive

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "with_verl"))

import scene  # noqa: E402  the CPU scene of the tests

PACKAGES = ("verl", "torch", "ray", "transformers", "numpy")
TARGET = 0.05


def timed_steps(steps: int, allocator: str) -> list[dict[str, Any]]:
    """verl's timings of each step of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = scene.make_scene(Path(name))
        given = scene.arguments(folder, folder, steps=steps) | {
            "actor_rollout_ref.model.external_lib": "verl_alternate",
            "dibs.allocator": allocator,
        }
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        process = scene.start("dibs.integrations.verl.main", folder, given)
        if process.wait():
            sys.exit((folder / "log.txt").read_text(encoding="utf-8")[-3000:])
        lines = scene.read_lines(folder / "metrics.jsonl")
    return [
        {
            "ours": "dibs/count_sum" in line["data"],
            "step": line["data"]["timing_s/step"],
            "gen": line["data"]["timing_s/gen"],
        }
        for line in lines
    ]


def measure(steps: int, allocator: str) -> dict[str, object]:
    """Medians of both kinds of steps and the share that the plug-in adds."""
    timed = timed_steps(steps, allocator)
    ours, stock = (
        np.array([each["step"] for each in timed[2:] if each["ours"] == kind])
        for kind in (True, False)
    )
    waiting = float(np.median([each["gen"] for each in timed[2:]]))
    draws = np.random.default_rng(0)
    ratios = [
        np.median(draws.choice(ours, len(ours))) / np.median(draws.choice(stock, len(stock))) - 1
        for _ in range(2000)
    ]
    added = float(np.median(ours) - np.median(stock))
    return {
        "overhead": added / float(np.median(stock)),
        "overhead_low": float(np.quantile(ratios, 0.025)),
        "overhead_high": float(np.quantile(ratios, 0.975)),
        "overhead_of_work": added / (float(np.median(stock)) - waiting),
        "target": TARGET,
        "step_seconds_stock": float(np.median(stock)),
        "step_seconds_plug_in": float(np.median(ours)),
        "waiting_seconds": waiting,
        "steps_each": [len(ours), len(stock)],
        "prompts": scene.PROMPTS,
        "generations": scene.GENERATIONS,
        "allocator": allocator,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=positive, default=82, help="of the run, both kinds together"
    )
    parser.add_argument("--allocator", default="uniform")
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args()
    result = measure(args.steps, args.allocator)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"step of verl: {result['step_seconds_stock']:.3f} s, with the plug-in "
        f"({args.allocator}) {result['step_seconds_plug_in']:.3f} s: {result['overhead']:+.1%} "
        f"({result['overhead_low']:+.1%} to {result['overhead_high']:+.1%}), "
        f"{result['overhead_of_work']:+.1%} of what is not waiting; target {TARGET:.0%}"
    )


if __name__ == "__main__":
    main()
