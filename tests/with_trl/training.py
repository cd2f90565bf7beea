"""One run of a TRL trainer, stock or ours: settings as JSON in, what happened as JSON out.

As a script it takes the settings from a file and writes one file a process, so that torchrun can start
it and a test can kill it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from dibs.allocation.problem import AllocationProblem
from dibs.allocation.proportional import proportional
from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer
from dibs.integrations.trl.groups import own_names

PROMPTS = 8
UNIFORM = {"allocator": "uniform"}
TARGET = {"objective": "expected_reward", "baseline": "leave_one_out"}
SKEWED = {"allocator": "training:skewed", "grad_norm": "none"}


def skewed(problem: AllocationProblem) -> np.ndarray:
    """One completion, none, 9, and the rest; other prompts get 2."""
    counts = np.full(len(problem.stats), 2)
    counts[:3] = 1, 0, 9
    counts[3] += int(problem.budget) - counts.sum()
    return counts


def rarer(problem: AllocationProblem) -> np.ndarray:
    """In proportion to what was rejected of each prompt, as far as its statistics know."""
    stats = problem.stats
    rejected = (stats.trials - stats.successes + 1) / (stats.trials + 2)
    return proportional(rejected, problem.budget, problem.lower, problem.upper)


def even(problem: AllocationProblem) -> np.ndarray:
    """The same for all, but not by the name that is known to be."""
    return np.full(len(problem.stats), int(problem.budget) // len(problem.stats))


def first(problem: AllocationProblem) -> np.ndarray:
    """Two for each prompt, and what is left for the first."""
    counts = np.full(len(problem.stats), 2)
    counts[0] += int(problem.budget) - counts.sum()
    return counts


def judge(completion: str, level: int) -> float:
    """Easy at high levels, hopeless at 0."""
    return float(sum(not c.isalpha() for c in completion) > len(completion) * (1 - level / PROMPTS))


def uneven(seed: int) -> Any:
    """A rollout function that draws anything, of 1 to 8 tokens."""
    draw = random.Random(seed)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        completions = [[draw.randrange(250) for _ in range(draw.randint(1, 8))] for _ in prompts]
        contexts = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": contexts, "completion_ids": completions, "logprobs": None}

    return rollout


class Reward:
    """The judge; notes what it was asked. ``unjudged``: every so-manieth has no reward."""

    __name__ = "judge"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.calls: list[dict[str, Any]] = []
        self.counts: list[list[int]] = []
        self.trainer: Any = None

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        level: list[int],
        **_: Any,
    ) -> list[float | None]:
        self.calls.append({"prompts": prompts, "ids": completion_ids})
        self.counts.append(np.array(getattr(self.trainer, "counts", [])).tolist())
        if len(self.calls) == self.settings.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        rewards = [judge(c, each) for c, each in zip(completions, level, strict=True)]
        skipped = self.settings.get("unjudged")
        return [None if skipped and i % skipped == 0 else r for i, r in enumerate(rewards)]


def rows(prompts: int = PROMPTS) -> Dataset:
    """Short questions, each with the level that its reward is judged by."""
    return Dataset.from_list([{"prompt": f"{7 * i}+{i}=", "level": i} for i in range(prompts)])


def build(settings: dict[str, Any]) -> tuple[GRPOTrainer, Reward]:
    """A trainer on 4 prompts x 8 completions a generation batch, unless ``grpo`` says otherwise."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options = {
        "output_dir": settings["folder"],
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4 // processes,
        "num_generations": 8,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 7,
        **settings.get("grpo", {}),
    }
    reward = Reward(settings)
    given: dict[str, Any] = {
        "model": settings["model"],
        "reward_funcs": reward,
        "args": GRPOConfig(**options),
        "train_dataset": rows(),
        "eval_dataset": rows(4) if "eval_strategy" in options else None,
        "peft_config": LoraConfig(r=4, target_modules="all-linear")
        if settings.get("lora")
        else None,
    }
    if settings.get("dibs") is None:
        reward.trainer = GRPOTrainer(**given)
    else:
        reward.trainer = DIBSGRPOTrainer(**given, dibs=DIBSConfig(**settings["dibs"]))
    if "known" in settings:  # how many of 40 completions of each prompt were accepted before
        names = own_names(given["train_dataset"], None)
        told = [[1.0] * n + [0.0] * (40 - n) for n in settings["known"]]
        reward.trainer.budget.update(names, told)
    return reward.trainer, reward


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Train and tell."""
    trainer, reward = build(settings)
    assert trainer.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    trainer.train(resume_from_checkpoint=settings.get("resume"))
    history = trainer.state.log_history
    return {
        "calls": reward.calls,
        "counts": reward.counts,
        "log": [each for each in history if "loss" in each],
        "eval": [each for each in history if "eval_loss" in each],
        "processes": trainer.accelerator.num_processes,
        "state": trainer.budget.state() if settings.get("dibs") is not None else None,
        "rollouts": getattr(trainer, "rollouts", None),
    }


def main() -> None:
    """``training.py SETTINGS OUT``; writes ``OUT.RANK``."""
    told = run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    out = Path(f"{sys.argv[2]}.{os.environ.get('RANK', '0')}")
    out.write_text(json.dumps(told), encoding="utf-8")
    if dist.is_initialized():
        # While the interpreter ends, gloo's threads now and then abort a process that is done.
        dist.barrier()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    # Allocators are named by module, and this one is called __main__ here.
    sys.modules["training"] = sys.modules["__main__"]
    main()
