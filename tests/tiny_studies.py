"""What makes the studies of studies/ tiny."""

from __future__ import annotations

STUDIES = {
    "demo": ["--compare.exclude=['large/*', '*/*/512x2', '*/*/64x2']", "--variance.interval=0"],
    "embedded": [
        "--compare.exclude=['arithmetic/*', '*/raft/*', '*/grpo/*', '*/log_*', '*/*/online',"
        " '*/*/cross_fit', '*/*/gvm', 'polar/*/online-tokens']",
        "--compare.learning_rates=[]",
        "--compare.meter=[start, end]",
        "--variance.prompts=2",
        "--variance.num_generations=4",
    ],
    "joint": [
        "--compare.learning_rates=[]",
        "--compare.exclude=['*/*/128x1', '*/*/32x4']",
    ],
    "joint-families": [
        "--estimate.num_pilots=4",
        "--compare.learning_rates=[]",
        "--compare.exclude=['wide/*', 'arithmetic/*', 'lengths/*', 'polar/raft++/*', '*/*/32x4']",
    ],
    "joint-large": ["--compare.learning_rates=[]"],
    "paper": [
        "--policy.model=arithmetic-easy",
        "--policy.dtype=float32",
        "--data.train=arithmetic-easy",
        "--data.template=plain",
        "--sampling.engine=transformers",
        "--compare.exclude=['*/grpo/*', '*/*/uniform-16', '*/*/gvm-*']",
    ],
    "polar": ["--compare.exclude=['*/*/online']"],
    "rules": ["--compare.learning_rates=[]", "--compare.exclude=['polar/*', 'lengths/*']"],
    "uneven": ["--compare.exclude=['*/small-rate/*', '*/*/gvm-8x-updates']"],
}
"""What makes a study tiny, beside ``TINY_STUDY``."""
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
