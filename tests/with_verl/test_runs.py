"""Real runs of verl on the CPU: Ray, FSDP2 over gloo, rollouts, checkpoints. About a minute each.

What was seen is written up in docs/compatibility-verl.md, and must be what is there:
``DIBS_WRITE_TABLES=1`` writes it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

WAIT = 900
"""Seconds that a run may take, on a machine where others work too."""
pytestmark = [pytest.mark.verl, pytest.mark.timeout(3 * WAIT)]
pytest.importorskip("verl.trainer")

import psutil  # noqa: E402  where there is no verl, nothing of this is imported
import scene  # noqa: E402
import torch  # noqa: E402

from dibs.allocation.budget_config import BudgetConfig  # noqa: E402
from dibs.allocation.prompt_budget import PromptBudget  # noqa: E402

STOCK, PLUG_IN = "verl.trainer.main_ppo", "dibs.integrations.verl.main"
ACTOR = "actor_rollout_ref.actor"
UNEVEN = {"dibs.allocator": "uneven:by_successes"}
TABLE = Path(__file__).parents[2] / "docs" / "compatibility-verl.md"
LOSSES = ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean")
TOTAL = scene.PROMPTS * scene.GENERATIONS


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def metrics(self) -> list[dict]:
        return [line["data"] for line in scene.read_lines(self.folder / "metrics.jsonl")]

    @property
    def counts(self) -> list[dict]:
        return scene.read_lines(self.folder / "counts.jsonl")

    def state(self, step: int) -> dict:
        return json.loads(
            (self.folder / f"checkpoints/global_step_{step}/dibs.json").read_text("utf-8")
        )

    def optimizer_updates(self, step: int) -> set[int]:
        folder = self.folder / f"checkpoints/global_step_{step}/actor"
        saved = torch.load(next(folder.glob("optim*rank_0.pt")), weights_only=False)
        return {int(each["step"]) for each in saved["state"].values()}


def wait(process, out: Path, log: str = "log.txt") -> None:
    try:
        status = process.wait(timeout=WAIT)
    finally:
        kill(process)
    assert status == 0, (out / log).read_text()[-3000:]


def kill(process) -> None:
    """SIGKILL to a run's process and to all that came of it: Ray's too, wherever they are."""
    with_children = []
    if psutil.pid_exists(process.pid):
        parent = psutil.Process(process.pid)
        with_children = [parent, *parent.children(recursive=True)]
    for each in with_children:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(with_children, timeout=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scene.make_scene(tmp_path_factory.mktemp("scene"))


def run(folder: Path, name: str, module: str, *, ranks: int = 1, steps: int = 5, **more) -> Run:
    out = folder / name
    given = scene.arguments(folder, out, ranks=ranks, steps=steps) | more.pop("given", {})
    if module == PLUG_IN:
        given["dibs.counts_path"] = out / "counts.jsonl"
    wait(scene.start(module, out, given), out)
    return Run(out)


@pytest.fixture(scope="module")
def stock(folder):
    return run(folder, "stock", STOCK, steps=3, given={"trainer.save_freq": 3})


@pytest.fixture(scope="module")
def uniform(folder):
    given = {"dibs.allocator": "uniform", "trainer.save_freq": 3}
    return run(folder, "uniform", PLUG_IN, steps=3, given=given)


RLOO = {
    **UNEVEN,
    "algorithm.adv_estimator": "rloo",
    f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
    "trainer.save_freq": 1,
}


def resume_from(whole: Run, step: int) -> dict[str, object]:
    """Arguments with which another run goes on from a checkpoint."""
    return {
        "trainer.resume_mode": "resume_path",
        "trainer.resume_from_path": whole.folder / "checkpoints" / f"global_step_{step}",
    }


@pytest.fixture(scope="module")
def two_ranks(folder):
    given = RLOO | {"dibs.state_path": folder / "two.json"}
    return run(folder, "two", PLUG_IN, ranks=2, given=given)


@pytest.fixture(scope="module")
def rloo(folder):
    """In one process: of two servers, verl's load decides which one draws a completion."""
    return run(folder, "rloo", PLUG_IN, given=RLOO)


@pytest.fixture(scope="module")
def rloo_resumed(folder, rloo):
    """The same run once more, from the third checkpoint on."""
    return run(folder, "rloo_resumed", PLUG_IN, given=RLOO | resume_from(rloo, 3))


def ppo_arguments(folder: Path) -> dict[str, object]:
    """PPO with its critic and a reference policy, over prompts that are chosen with their counts."""
    return scene.critic_arguments(folder) | {
        "dibs.pool": "all",
        "dibs.half_life": 50,
        "dibs.allocator": "vip",  # min_variance finds all prompts alike here
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_coef": 0.1,
        f"{ACTOR}.entropy_coeff": 0.01,
        "actor_rollout_ref.ref.strategy": "fsdp2",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
        "actor_rollout_ref.ref.fsdp_config.model_dtype": "fp32",
        "actor_rollout_ref.ref.fsdp_config.dtype": "float32",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
        "trainer.save_freq": 1,
    }


@pytest.fixture(scope="module")
def ppo(folder):
    return run(folder, "ppo", PLUG_IN, given=ppo_arguments(folder))


@pytest.fixture(scope="module")
def ppo_resumed(folder, ppo):
    """The same run once more, from the third checkpoint on."""
    return run(folder, "ppo_resumed", PLUG_IN, given=ppo_arguments(folder) | resume_from(ppo, 3))


@pytest.fixture(scope="module")
def lora(folder):
    """Adapters that are merged for the rollout, whose base is the reference policy."""
    given = {
        **UNEVEN,
        "actor_rollout_ref.model.lora_rank": 4,
        "actor_rollout_ref.model.lora.merge": True,
        f"{ACTOR}.optim.lr": 0.01,
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_coef": 0.1,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
    }
    return run(folder, "lora", PLUG_IN, steps=3, given=given)


@pytest.fixture(scope="module")
def raft(folder):
    given = {
        "dibs.algorithm": "raft++",
        "dibs.mode": "pilot",
        "dibs.num_pilots": 4,
        "dibs.allocator": "gvm",
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
        f"{ACTOR}.loss_scale_factor": 6,
        "trainer.save_freq": 5,
    }
    return run(folder, "raft", PLUG_IN, given=given)


@pytest.fixture(scope="module")
def resumed(folder):
    """Killed in the fifth step, when its counts are known and it is not saved; then gone on with."""
    out = folder / "resumed"
    given = scene.arguments(folder, out, steps=7) | UNEVEN
    given |= {
        "dibs.counts_path": out / "counts.jsonl",
        "dibs.state_path": out / "state.json",
        "trainer.save_freq": 1,
        "trainer.resume_mode": "auto",
    }
    process = scene.start(PLUG_IN, out, given, log="killed.txt")
    deadline = time.monotonic() + WAIT
    while len(scene.read_lines(out / "counts.jsonl")) < 5:
        assert process.poll() is None, (out / "killed.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill(process)
    wait(scene.start(PLUG_IN, out, given), out)
    return Run(out)


def check_counts(run: Run, steps: int) -> None:
    assert len(run.counts) == steps
    for line in run.counts:
        assert line["received"] == line["requested"]
        assert sum(line["requested"]) == TOTAL
        assert len(set(line["requested"])) > 2, "ragged"
    for line in run.metrics:
        assert line["dibs/missing_completions"] == 0
        assert line["dibs/count_sum"] == TOTAL
        assert line["dibs/norms_measured"] == 1


def largest_difference(stock: Run, uniform: Run) -> float:
    return max(
        abs(one[key] - other[key])
        for one, other in zip(stock.metrics, uniform.metrics, strict=True)
        for key in LOSSES
    )


def test_uniform_counts_reproduce_the_stock_trainer(stock, uniform):
    assert len(stock.metrics) == len(uniform.metrics) == 3
    assert largest_difference(stock, uniform) <= 1e-5
    assert {abs(line["actor/pg_loss"]) > 1e-4 for line in stock.metrics} == {True}


def test_grpo_in_one_process_goes_on_after_a_kill(resumed):
    lines = resumed.counts
    steps = [line["step"] for line in lines]
    newest = steps[5] - 1  # the checkpoint that was gone on from
    assert steps == [1, 2, 3, 4, 5, *range(newest + 1, 8)]
    assert newest in (4, 5)
    for line in lines:
        assert line["received"] == line["requested"]
        assert sum(line["requested"]) == TOTAL

    # The state saved decides the counts of the step after it: in the killed run and in this one.
    for before in (4, newest, 6):
        budget = PromptBudget(
            BudgetConfig(num_generations=scene.GENERATIONS, allocator="uneven:by_successes")
        )
        budget.load_state(resumed.state(before))
        for line in (line for line in lines if line["step"] == before + 1):
            assert budget.allocate(line["prompts"]).tolist() == line["requested"]
    by_step = {step: [line for line in lines if line["step"] == step] for step in steps}
    for same in by_step.values():
        assert all(line == same[0] for line in same)

    state = resumed.state(7)
    assert state["step"] == 7
    assert json.loads((resumed.folder / "state.json").read_text("utf-8")) == state
    seen = Counter(name for same in by_step.values() for name in same[0]["prompts"])
    assert set(state["history"]["prompts"]) == set(seen)
    # Nothing twice and nothing lost: completions, discounted to the step in which each was last seen.
    halved = 0.5 ** (1 / state["history"]["half_life"])
    for name in seen:
        trials, last = 0.0, 0
        for step, (line, *_) in sorted(by_step.items()):
            if name in line["prompts"]:
                drawn = line["requested"][line["prompts"].index(name)]
                trials, last = trials * halved ** (step - last) + drawn, step
        kept_at, kept_trials, *_ = state["history"]["prompts"][name]
        assert kept_at == last - 1
        assert kept_trials == pytest.approx(trials)


def test_rloo_in_two_processes(two_ranks):
    check_counts(two_ranks, 5)
    state = json.loads((two_ranks.folder.parent / "two.json").read_text("utf-8"))
    assert state["measured"]
    assert state["history"]["length_normalization"] == "sequence"


def test_rloo_goes_on(rloo, rloo_resumed):
    check_counts(rloo, 5)
    assert same_up_to_rounding(rloo, rloo_resumed, 5)


def test_raft_plus_plus_with_pilots(raft):
    check_counts(raft, 5)
    assert [line["dibs/pilots"] for line in raft.metrics] == [
        4 * scene.PROMPTS * step for step in range(1, 6)
    ]
    scores = [line["critic/score/mean"] for line in raft.metrics]
    assert max(scores[2:]) > 0, scores
    assert all(line["actor/pg_loss"] != 0 for line in raft.metrics)


def test_lora_with_its_base_as_reference(lora):
    check_counts(lora, 3)
    # Only the first update starts from the base itself. In bfloat16 small divergences round to 0.
    divergences = [line["actor/kl_loss"] for line in lora.metrics]
    assert divergences[-1] > 1e-3
    assert divergences[0] < divergences[-1] / 10
    for line in lora.metrics:
        assert line["actor/grad_norm"] > 0
        # What the rollout drew is of the policy with its adapters.
        assert line["training/rollout_probs_diff_max"] < 0.02


def test_ppo_over_prompts_of_the_whole_training_set(ppo):
    rows = 2 * scene.PROMPTS
    assert len(ppo.counts) == 5
    # Of 16 prompts known alike, 2 completions each; verl's own batch would have 8 prompts.
    assert ppo.counts[0]["requested"] == [2] * rows
    for line in ppo.counts:
        assert line["received"] == line["requested"]
        assert sum(line["requested"]) == TOTAL
        assert min(line["requested"]) >= 1
    for line in ppo.metrics:
        assert line["dibs/pool_size"] == rows
        assert line["dibs/largest_weight"] <= 4 + 1e-9
        assert line["dibs/missing_completions"] == 0
        assert line["dibs/norms_measured"] == 1
        assert line["critic/vf_loss"] > 0
    assert ppo.state(5)["history"]["length_normalization"] == "none, with advantages"
    assert any(len(set(line["requested"])) > 1 for line in ppo.counts[1:])
    # Each state decides the step after it.
    names = ppo.counts[0]["prompts"]
    given = {"objective": "expected_reward", "baseline": "none", "advantages": "given"}
    options = BudgetConfig(**given, half_life=50, allocator="vip")
    for line in ppo.counts[1:]:
        budget = PromptBudget(options)
        budget.load_state(ppo.state(line["step"] - 1))
        chosen = budget.choose(names, TOTAL, seed=1)
        assert chosen.prompt_ids == line["prompts"]
        assert chosen.counts.tolist() == line["requested"]


def is_exact(whole: Run, resumed: Run, steps: int) -> bool:
    """Whether the last two steps of both runs are the same to the last bit, statistics included."""
    later = whole.metrics[-2:]
    return (
        resumed.counts == whole.counts[-2:]
        and resumed.state(steps) == whole.state(steps)
        and [[line[key] for key in LOSSES] for line in resumed.metrics]
        == [[line[key] for key in LOSSES] for line in later]
    )


def same_up_to_rounding(whole: Run, resumed: Run, steps: int) -> bool:
    """Whether counts of the last two steps are the same, and losses and statistics but for rounding.

    verl asks for the completions of a group at once, so their order, and that of sums, is not fixed.
    """
    found, expected = (
        [*leaves(each.state(steps)), *(line[key] for line in each.metrics[-2:] for key in LOSSES)]
        for each in (resumed, whole)
    )
    near = [pytest.approx(each, rel=1e-6) if isinstance(each, float) else each for each in expected]
    return resumed.counts == whole.counts[-2:] and found == near


def leaves(value) -> list:
    """The values of nested dictionaries and lists, in the order of their keys."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def test_ppo_goes_on_exactly(ppo, ppo_resumed):
    assert ppo_resumed.counts == ppo.counts[3:]
    assert is_exact(ppo, ppo_resumed, 5)


def test_optimizer_updates_are_those_of_the_uniform_run(stock, uniform, resumed, raft, ppo):
    a_step = {
        "stock": (stock, 3),
        "uniform": (uniform, 3),
        "uneven": (resumed, 7),
        "pilots": (raft, 5),
        "ppo": (ppo, 5),
    }
    for name, (run, steps) in a_step.items():
        assert run.optimizer_updates(steps) == {2 * steps}, name


def test_the_table_is_what_was_seen(
    stock, uniform, resumed, two_ranks, rloo, rloo_resumed, raft, ppo, ppo_resumed, lora
):
    packages = ("verl", "torch", "ray", "transformers", "tensordict", "TransferQueue", "numpy")
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in packages)
    rows = [
        ("`uniform` against the stock trainer, GRPO", "1", uniform, "largest difference of losses "
         f"{'0' if largest_difference(stock, uniform) == 0 else 'below 1e-5'}"),
        ("GRPO, mode `online`, killed and resumed", "1", resumed, "same online state"),
        ("RLOO, mode `online`, `seq-mean-token-mean`", "2 (FSDP2)", two_ranks,
         "norms from the output layer, over lengths"),
        ("the same in one process, resumed from step 3", "1", rloo_resumed,
         "same counts; losses and statistics "
         f"{'up to rounding' if same_up_to_rounding(rloo, rloo_resumed, 5) else 'differ'}"),
        ("RAFT++, mode `pilot`, allocator `gvm`, `seq-mean-token-sum-norm`", "1", raft,
         "norms from the output layer"),
        ("PPO with its critic, reference policy, `dibs.pool=all`, `vip`", "1", ppo,
         "prompts chosen with their counts; norms of advantage times gradient"),
        ("the same, resumed from step 3", "1", ppo_resumed,
         "counts, statistics and losses "
         f"{'to the last bit' if is_exact(ppo, ppo_resumed, 5) else 'differ'}"),
        ("GRPO with LoRA, its base as reference policy", "1", lora, "adapters merged for the rollout"),
    ]  # fmt: skip
    lines = [
        "# verl: what was run",
        "",
        "Written by `make test-verl`, which runs verl itself on the CPU (FSDP2 over gloo, a rollout",
        "server of the tests in place of vLLM or SGLang) and fails where this is not what it sees.",
        "",
        f"Versions: {versions}.",
        "",
        "| run | processes | steps | requested = received | sum = budget | seen |",
        "|---|---|---|---|---|---|",
    ]
    for name, processes, seen, remark in rows:
        counts = {line["step"]: line for line in seen.counts}
        same = all(line["received"] == line["requested"] for line in seen.counts)
        whole = all(sum(line["requested"]) == TOTAL for line in seen.counts)
        lines.append(
            f"| {name} | {processes} | {len(counts)} | {yes(same)} | {yes(whole)} | {remark} |"
        )
    text = "\n".join(lines) + "\n"
    if os.environ.get("DIBS_WRITE_TABLES"):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text


def yes(what: bool | np.bool_) -> str:
    return "yes" if what else "no"
