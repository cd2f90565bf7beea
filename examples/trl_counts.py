"""Per-prompt counts in TRL's GRPOTrainer, with a policy and prompts that are made here.

    pip install "dibs-rl[trl] @ git+URL"   # what URL is: docs/install.md
    python examples/trl_counts.py

Prompts are problems of the embedded task, which the policy solves about half of the time. Each comes
back every few batches. From its second visit on, what is known of it decides how many completions it
gets.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig

from dibs import verify
from dibs.config import WarmStartConfig
from dibs.data.arithmetic import draw_problems, parts_of
from dibs.integrations.trl import DIBSConfig, DIBSGRPOTrainer
from dibs.model.warm_start import warm_started_policy

TASK = "arithmetic-easy"


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for a right answer, else 0."""
    return [verdict.reward or 0.0 for verdict in verify(answer, completions, "arithmetic")]


def main() -> None:
    """Train, and print what each batch was like."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help="optimizer updates")
    parser.add_argument("--warm-start-updates", type=int, default=400, help="of the policy")
    args = parser.parse_args()
    small = {"hidden_size": 48, "heads": 2, "layers": 1, "batch_size": 64}
    recipe = WarmStartConfig(updates=args.warm_start_updates, **small)
    model = warm_started_policy(TASK, recipe, lambda *_: None)
    problems = draw_problems(16, parts_of(TASK) or (), seed=0)
    rows = [{"prompt": each.prompt, "answer": str(each.answer)} for each in problems]
    trainer = DIBSGRPOTrainer(
        model=str(model),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir="runs/trl",
            per_device_train_batch_size=32,
            num_generations=4,
            max_completion_length=12,
            max_steps=args.steps,
            learning_rate=1e-3,
            scale_rewards="none",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        # AutoTokenizer would take that of the architecture, which adds tokens.
        processing_class=PreTrainedTokenizerFast.from_pretrained(model),
        dibs=DIBSConfig(half_life=20),
    )
    trainer.train()
    for line in trainer.state.log_history:
        if "reward" in line:
            most = line.get("dibs/count_max", float("nan"))
            print(f"step {line['step']}: reward {line['reward']:.2f}, most completions {most:.0f}")


if __name__ == "__main__":
    main()
