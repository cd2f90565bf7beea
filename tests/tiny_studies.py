"""What makes the studies of studies/ tiny."""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "studies"
NO_TUNING = "--compare.learning_rates=[]"
LEFT_OUT = {
    "demo": ["large/*", "*/*/512x2", "*/*/64x2"],
    "embedded": [
        *("arithmetic/*", "*/raft/*", "*/grpo/*", "*/log_*", "*/*/online"),
        *("*/*/cross_fit", "*/*/gvm", "polar/*/online-tokens"),
    ],
    "joint": ["*/*/128x1", "*/*/32x4"],
    "joint-families": ["wide/*", "arithmetic/*", "lengths/*", "polar/raft++/*", "*/*/32x4"],
    "joint-large": [],
    "paper": ["*/grpo/*", "*/*/uniform-16", "*/*/gvm-*"],
    "polar": ["*/*/online"],
    "rules": ["polar/*", "lengths/*"],
    "uneven": ["*/small-rate/*", "*/*/gvm-8x-updates"],
}
"""Arms left out of a tiny study, beside those that the study itself leaves out."""
WORDS = {
    "demo": ["--variance.interval=0"],
    "embedded": [
        NO_TUNING,
        "--compare.meter=[start, end]",
        "--variance.prompts=2",
        "--variance.num_generations=4",
    ],
    "joint": [NO_TUNING],
    "joint-families": ["--estimate.num_pilots=4", NO_TUNING],
    "joint-large": [NO_TUNING],
    "paper": [
        "--policy.model=arithmetic-easy",
        "--policy.dtype=float32",
        "--data.train=arithmetic-easy",
        "--data.template=plain",
        "--sampling.engine=transformers",
    ],
    "rules": [NO_TUNING],
}
"""What else makes a study tiny, beside ``TINY_STUDY``."""
TINY_STUDY = [
    "--compare.seeds=[0]",
    "--train.steps=1",
    "--train.prompts_per_step=4",
    "--data.size=16",
    "--data.eval_size=4",
    "--estimate.num_pilots=2",
    "--evaluate.interval=1",
    "--evaluate.num_generations=2",
    "--sampling.max_completion_length=12",
    "--policy.warm_start.updates=5",
]


def tiny_study(name: str) -> list[str]:
    """The words of ``dibs compare`` for studies/``name``.yaml made tiny."""
    path = FOLDER / f"{name}.yaml"
    own = yaml.safe_load(path.read_text(encoding="utf-8"))["compare"].get("exclude", [])
    exclude = [*dict.fromkeys([*own, *LEFT_OUT[name]])]
    return [str(path), *TINY_STUDY, *WORDS.get(name, []), f"--compare.exclude={exclude}"]
