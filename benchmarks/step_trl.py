"""The TRL side of ``benchmarks/step.py``: settings as JSON from a file, one JSON object on stdout.

It runs in an environment of its own, with dibs on PYTHONPATH for the tokenizer and the judge: both
sides read the model's folder alike and reward completions by the same function.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from long_prompts import coin
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from dibs.model.pretrained import load_tokenizer
from dibs.rollouts.verify.judges import judge_arithmetic


class Clock(TrainerCallback):
    """Seconds between the ends of training steps; one takes ``updates`` optimizer updates.

    Steps follow on each other, so nothing the trainer does in between is left out.
    """

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.ends: list[tuple[float, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step % self.updates == 0:
            self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> list[tuple[float, float]]:
        """Seconds and CPU seconds of each step."""
        steps = zip(self.ends, self.ends[1:], strict=False)
        return [(end[0] - start[0], end[1] - start[1]) for start, end in steps]


class Reward:
    """The judge of dibs, or its toss of a coin; notes what each step wrote."""

    __name__ = "judge"

    def __init__(self, tosses: bool) -> None:
        self.tosses = tosses
        self.steps: list[dict[str, float]] = []

    def __call__(
        self, completions: list[str], answer: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        rewards = [
            coin(gold, text) if self.tosses else judge_arithmetic(gold, text).reward
            for gold, text in zip(answer, completions, strict=True)
        ]
        self.steps.append(
            {
                "rollouts": len(rewards),
                "tokens": sum(map(len, completion_ids)),
                "accepted": sum(rewards),
            }
        )
        return rewards


def settings(
    given: dict[str, Any], folder: str, accumulated: int, options: dict[str, Any]
) -> GRPOConfig:
    """The trainer's settings: one optimizer update takes ``accumulated`` micro-batches."""
    micro_batch = given["prompts"] * given["generations"] // given["updates"]
    return GRPOConfig(
        output_dir=folder,
        seed=given["seed"],
        # One generation serves all updates of a step.
        per_device_train_batch_size=micro_batch // accumulated,
        gradient_accumulation_steps=accumulated,
        steps_per_generation=accumulated * given["updates"],
        num_iterations=1,
        num_generations=given["generations"],
        max_steps=given["updates"] * given["steps"],
        shuffle_dataset=False,  # the rows come in the order in which dibs draws them
        # Sampling from the policy itself, as dibs does.
        max_completion_length=given["length"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        # The same loss and optimizer.
        loss_type="grpo",
        scale_rewards="group",
        beta=0.0,
        epsilon=0.2,
        learning_rate=given["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        # What would only cost time.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )


def train(given: dict[str, Any], options: dict[str, Any], folder: str) -> list[dict[str, float]]:
    """What each step took and wrote. ``options``: of GRPOConfig, and ``attention`` of the model."""
    options = dict(options)
    model = AutoModelForCausalLM.from_pretrained(
        given["model"],
        dtype=torch.float32,
        attn_implementation=options.pop("attention", "sdpa"),
    )
    accumulated = options.pop("micro_batches", 1)
    clock, reward, sampling = Clock(given["updates"]), Reward(given["tosses"]), []
    trainer = GRPOTrainer(
        model=model,
        processing_class=load_tokenizer(given["model"], {}),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(given["rows"]),
        callbacks=[clock],
        args=settings(given, folder, accumulated, options),
    )
    for name in ("generate", "generate_batch"):
        setattr(model, name, timed(getattr(model, name), sampling))
    trainer.train()
    steps = zip(clock.seconds(), sampling, reward.steps, strict=True)
    return [
        {"seconds": seconds, "cpu_seconds": spent, "sample_seconds": sampled, **written}
        for (seconds, spent), sampled, written in steps
    ]


def timed(function: Any, spent: list[float]) -> Any:
    """The function, with seconds of each call appended to ``spent``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - started)

    return run


def main() -> None:
    """Train once for each set of options."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    runs = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for name, options in given["options"].items():
            runs[name] = train(given, options, folder)
    packages = ("trl", "torch", "transformers", "accelerate", "numpy", "tokenizers")
    print(json.dumps({"runs": runs, "versions": {name: version(name) for name in packages}}))


if __name__ == "__main__":
    main()
