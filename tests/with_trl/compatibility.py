"""The table of what works where, from what the tests found.

    python compatibility.py RESULTS.xml TABLE.md

A row works where all of its tests passed; where one failed or was not run, the row says so.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")
ROWS: dict[str, tuple[str, ...]] = {
    "allocator `uniform` is stock TRL, losses to 1e-5": ("test_losses_are", "test_bnpo"),
    "gradient of every loss, ragged groups, uneven lengths": (
        "test_the_gradient_is_that_of_the_loss",
    ),
    "gradient norms are of that gradient, every loss": (
        "test_norms_are_those_of_trls_loss",
        "test_the_budget_gets_these_norms",
    ),
    "the same in 2 processes (torchrun, gloo, DDP)": ("test_uniform.test_two_processes",),
    "ragged counts, requested = received": ("test_counts_requested",),
    "the same in 2 processes": ("test_ragged.test_two_processes",),
    "gradient of the estimator (`dr_grpo`, `grpo`, `dapo`)": ("test_the_gradient_is_what",),
    "KL to the reference (`beta`), weighed": ("test_the_reference_is",),
    "mode `online`": ("test_counts_requested_are_counts_received[online]",),
    "mode `pilot`, allocator `gvm`": ("test_pilots_",),
    "RAFT, RAFT++": ("test_only_raft", "test_the_gradient_is_what"),
    "prompts chosen with their counts (`pool`), also resumed in 2 processes": ("test_pool.",),
    "PEFT (LoRA)": ("test_adapters",),
    "`steps_per_generation`, `num_iterations`, accumulation": (
        "test_losses_are",
        "test_uniform.test_two_processes",
        "test_the_gradient_is_that_of_the_loss",
    ),
    "resume after SIGKILL, 1 and 2 processes": ("test_a_killed_run",),
    "evaluation": ("test_evaluation_is_stock",),
    "`rollout_func` (modes `online`, `none`)": ("test_groups_of_its_own",),
    "completions without a reward": ("test_completions_without",),
}
BY_HAND = (
    ("vLLM, colocated and server", "written for, not run: needs a GPU"),
    ("gradient norms under FSDP or DeepSpeed", "refused: set `grad_norm` to `none`; not run"),
    ("tools, `environment_factory`, images", "refused"),
)


def outcomes(path: Path) -> dict[str, bool]:
    """Whether each test passed, by ``module.name``."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        found[name] = not any(
            case.find(kind) is not None for kind in ("failure", "error", "skipped")
        )
    return found


def verdict(found: dict[str, bool], parts: tuple[str, ...]) -> str:
    """What a row's tests say together."""
    concerned = [passed for name, passed in found.items() if any(p in name for p in parts)]
    if not concerned:
        return "not run"
    return f"works ({len(concerned)} tests)" if all(concerned) else "FAILS"


def table(found: dict[str, bool]) -> str:
    """Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "# TRL: what works where",
        "",
        "Written by `make test-trl`; not by hand. CPU, float32, Python "
        + ".".join(map(str, sys.version_info[:2]))
        + f", {versions}.",
        "",
        "| what | found |",
        "|---|---|",
        *(f"| {name} | {verdict(found, parts)} |" for name, parts in ROWS.items()),
        *(f"| {name} | {state} |" for name, state in BY_HAND),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(table(outcomes(Path(sys.argv[1]))), encoding="utf-8")
