"""Every number that a run or a plug-in writes is described in the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dibs import BudgetConfig, PromptBudget, PromptQueue
from dibs.files import read_lines
from tiny_runs import PILOT_FREE, POOL, run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("more", "own"),
    [
        (["--variance.interval=1"], "measured_gain"),
        ([*POOL, "--train.prompts_per_step=4"], "pool_size"),
        ([*PILOT_FREE, "--allocate.rounds=ar3po"], "trained_prompts"),
        (["--verify.rewards=[{verifier: exact, weight: 0.5, name: same}]"], "rewards"),
    ],
)
def test_every_number_that_is_written_is_documented(tmp_path, more, own):
    run(tmp_path / "run", *more, "--tracking.samples_interval=1")
    documented = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    written = set()
    for name in ("metrics.jsonl", "allocations.jsonl", "samples.jsonl", "sessions.jsonl"):
        written |= {key for line in read_lines(tmp_path / "run" / name) for key in line}
    assert own in written
    named = {"reward/NAME" if key.startswith("reward/") else key for key in written}
    assert {key for key in named if f"`{key}`" not in documented} == set()


def budget_numbers() -> set[str]:
    """The numbers of a budget: of a fixed batch, over a pool, and in rounds."""
    rewards = [[0.0, 1.0], [1.0, 1.0]]
    batch = PromptBudget(BudgetConfig(num_generations=2))
    batch.allocate(["a", "b"])
    pool = PromptBudget(BudgetConfig(objective="expected_reward", baseline="none"))
    pool.choose(["a", "b", "c"], budget=4)
    rounds = PromptBudget(
        BudgetConfig(num_generations=2, rounds="ar3po", mode="none", allocator="uniform")
    )
    rounds.allocate(["a", "b"])
    rounds.more(rewards)
    rounds.weights(rewards)
    return {name for each in (batch, pool, rounds) for name in each.metrics()} - {"allocation_note"}


def test_every_number_of_the_plug_ins_is_documented():
    plug_ins = ROOT / "src" / "dibs" / "integrations"
    trl = (plug_ins / "trl" / "log_metrics.py").read_text(encoding="utf-8")
    verl = (plug_ins / "verl" / "trainer.py").read_text(encoding="utf-8")
    # TRL logs the share of flat groups under a name of its own.
    of_trl = {*re.findall(r'"([a-z_]+)": float\(', trl), "rollouts"} - {"flat"}
    of_verl = set(re.findall(r'"dibs/([a-z_]+)"', verl))
    both = budget_numbers()
    assert {"pool_size", "largest_weight", "rounds", "trained_prompts", "expected_gain"} <= both
    assert (len(of_trl), len(of_verl)) == (3, 3)
    documented = (DOCS / "integrations.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in re.split(r"^## ", documented, flags=re.M)[1:])
    for own, section in ((of_trl, "TRL"), (of_verl, "verl"), (both, "TRL")):
        assert {name for name in own if f"`dibs/{name}`" not in sections[section]} == set()


def test_every_number_of_the_queue_is_documented():
    queue = PromptQueue(["a", "b"], group=2)
    queue.observe(queue.draw().prompt_id, [0.0, 1.0])
    queue.draw()
    documented = (DOCS / "integrations.md").read_text(encoding="utf-8")
    assert {name for name in queue.metrics() if f"`{name}`" not in documented} == set()
