"""The TRL side of ``benchmarks/gpu.py``: a folder with model and settings in, one JSON object on stdout.

It runs in an environment of its own. A step samples with the model that is trained and takes one
optimizer update; rewards are tosses of a coin.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """Times at which steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time when the device has finished."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def coin(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that is 1 for about half of all completions."""
    return [float(zlib.crc32(str(ids).encode()) % 2) for ids in completion_ids]


def main() -> None:
    """Train for the rounds and a warm-up step."""
    folder = Path(sys.argv[1])
    given = json.loads((folder / "given.json").read_text(encoding="utf-8"))
    rows = len(given["prompts"]) * given["generations"]
    on_cpu = given["device"] == "cpu"
    options = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=rows,
        num_generations=given["generations"],
        max_steps=given["rounds"] + 1,
        max_completion_length=given["length"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        learning_rate=1e-8,
        lr_scheduler_type="constant",
        use_cpu=on_cpu,
        bf16=given["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    clock = Clock()
    with contextlib.redirect_stdout(sys.stderr):
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                folder / "model", dtype=getattr(torch, given["dtype"])
            ),
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "model"),
            reward_funcs=coin,
            args=options,
            train_dataset=Dataset.from_list([{"prompt": text} for text in given["prompts"]]),
            callbacks=[clock],
        )
        trainer.train()
    steps = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    print(json.dumps({"step_seconds": statistics.median(steps), "trl": version("trl")}))


if __name__ == "__main__":
    main()
