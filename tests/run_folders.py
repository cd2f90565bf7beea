"""Run folders as training leaves them, made up: any number of steps in no time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from dibs.runs.read import Run, read_run

NASTY = "</script><script>document.title = 'in'</script><img src=x onerror=alert(1)> & <!-- \u2028"


def config(seed: int = 0, allocator: str = "min_variance", mode: str = "pilot", **more) -> dict:
    return {
        "seed": seed,
        "output_dir": f"somewhere/{allocator}-{seed}",
        "policy": {"model": "arithmetic"},
        "data": {"train": "arithmetic"},
        "algorithm": {"name": "raft++", "objective": "log_likelihood", "baseline": "none"},
        "estimate": {"mode": mode, "num_pilots": 8},
        "allocate": {"allocator": allocator, "num_generations": 8},
        "train": {"steps": 20, "prompts_per_step": 64},
        **more,
    }


def make_run(
    path: Path,
    *,
    steps: int = 4,
    prompts: int = 6,
    finished: bool = True,
    samples: int = 3,
    completion: str = "A11B4C28#28",
    **settings,
) -> Path:
    """A run of ``steps`` steps, 8 completions a prompt on average and 8 pilots in mode pilot."""
    path.mkdir(parents=True)
    options = config(**settings)
    options["train"] = {"steps": steps, "prompts_per_step": prompts}
    pilots = 8 * prompts if options["estimate"]["mode"] == "pilot" else 0
    random = np.random.default_rng(options["seed"])
    metrics = [
        _evaluated({"step": 0, "rollouts": 0, "pilot_rollouts": 0, "completion_tokens": 0}, 0.5)
    ]
    metrics[0]["optimizer_updates"] = 0
    allocations, kept = [], []
    for step in range(1, steps + 1):
        rates = random.beta(1 + step / 4, 1, prompts)
        counts = 1 + random.multinomial(7 * prompts, (1.01 - rates) / (1.01 - rates).sum())
        accepted = random.binomial(counts, rates)
        line = {
            "step": step,
            "optimizer_updates": 4 * step,
            "rollouts": step * (8 * prompts + pilots),
            "pilot_rollouts": step * pilots,
            "completion_tokens": step * 9 * (8 * prompts + pilots),
            "learned": int(accepted.sum()),
            "accept_rate_histogram": np.histogram(rates, 5, (0, 1))[0].tolist(),
            "expected_gain": 1.5 if options["estimate"]["mode"] != "none" else None,
            "achievable_gain": 2.0 if options["estimate"]["mode"] != "none" else None,
            "step_seconds": 2.0,
            "evaluate_seconds": 0.5,
        }
        if step % 2 == 0:
            if options["estimate"]["mode"] != "none":
                line |= {"measured_gain": 1.4, "measured_gain_low": 1.1, "measured_gain_high": 1.7}
                line |= {"measured_variance": 1.0, "measured_variance_uniform": 1.4}
            _evaluated(line, 0.9 - 0.4 / (1 + step) + random.normal(0, 0.01))
        metrics.append(line)
        allocations.append(
            {
                "step": step,
                "allocator": options["allocate"]["allocator"],
                "accept_rate": rates.tolist(),
                "count": counts.tolist(),
                "judged": counts.tolist(),
                "accepted": accepted.tolist(),
            }
        )
        kept += [
            {
                "step": step,
                "prompt_id": f"{i % prompts:016x}",
                "prompt": f"{i % prompts}A+{step}=",
                "completion": completion,
                "answer": "28",
                "reward": float(i % 2),
                "status": "accepted" if i % 2 else "rejected",
                "accept_rate": float(rates[i % prompts]),
                "count": int(counts[i % prompts]),
            }
            for i in range(samples)
        ]
    write_lines(path / "metrics.jsonl", metrics)
    write_lines(path / "allocations.jsonl", allocations)
    write_lines(path / "samples.jsonl", kept)
    (path / "config.yaml").write_text(yaml.safe_dump(options))
    session = {"step": 0, "started": "today", "device": "cpu", "versions": {"dibs": "0.1.0"}}
    write_lines(path / "sessions.jsonl", [session])
    if finished:
        finish(path, steps)
    return path


def reported_run(path: Path) -> Run:
    """The run that the report reads from a folder, of which it must make something."""
    run = read_run(path)
    assert isinstance(run, Run), run.reason
    return run


def finish(path: Path, steps: int) -> None:
    (path / "summary.json").write_text(json.dumps({"steps": steps, "wall_seconds": 9.0}))


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _evaluated(line: dict, accuracy: float) -> dict:
    line |= {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.03,
        "accuracy_high": accuracy + 0.03,
        "log_accept_rate": float(np.log(accuracy)) - 0.1,
    }
    return line
