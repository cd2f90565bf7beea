"""The parts of the verl adapter that need no verl; tests/with_verl has those that do."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from math import ceil, floor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_budget import PromptBudget
from dibs.allocation.target import Target
from dibs.integrations.budget_state import load_budget, write_state
from dibs.integrations.check_methods import TrainerHooks
from dibs.integrations.requirement import require
from dibs.integrations.verl.groups import Groups, dealt_rows, splits
from dibs.integrations.verl.last_layer import (
    NORMS,
    SCORES,
    TERMS,
    completion_norms,
    norms_measured,
    obstacle,
)
from dibs.integrations.verl.loss_factors import loss_factors
from dibs.integrations.verl.options import read_block
from dibs.integrations.verl.row_weights import weigh_rows, whiten
from dibs.model.grad_norms import gradient_norms
from dibs.types import InputError, TrainingExample


def test_rows_become_groups_whatever_their_order():
    groups = Groups(["a", "b", "c"], ["b_0_0", "a_10_0", "a_2_0", "pad_0_0", "a_2_1"])
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert groups.sizes.tolist() == [2, 1, 0]
    assert groups.last(values) == [[5.0, 2.0], [1.0], []]
    assert groups.total(values) == [[8.0, 2.0], [1.0], []]
    spread = groups.spread([np.array([7.0, 8.0]), np.array([9.0]), np.zeros(0)])
    assert spread.tolist() == [9.0, 8.0, 7.0, 0.0, 7.0]


def test_rows_are_dealt_to_the_mini_batches_of_each_device():
    # Device 0 has 8 rows of a and 4 of b; device 1 has 4 of b, 6 of c, 1 of d and 1 of padding.
    uids = [*"aaaaaaaabbbb", *"bbbbccccccd", "pad"]
    keys = [f"{uid}_{session}_0" for session, uid in enumerate(uids)]
    firsts = []
    for step in range(200):
        order = dealt_rows(keys, 2, [4], (42, step))
        assert sorted(order[:12]) == list(range(12))
        assert sorted(order[12:]) == list(range(12, 24))
        parts = [[uids[i] for i in order[k : k + 3]] for k in range(0, 24, 3)]
        assert all(sorted(part) == [*"aab"] for part in parts[:4])
        assert all(part.count("b") == 1 and part.count("c") in (1, 2) for part in parts[4:])
        firsts.append("d" in parts[4])
    # One of four mini-batches has the row of d: 50 +- 6 times it is the first.
    assert 20 < sum(firsts) < 80
    assert dealt_rows(keys, 2, [1], (0,)) == list(range(24))
    assert dealt_rows([], 2, [4], (0,)) == []


@pytest.mark.parametrize(("actor", "critic"), [(16, 4), (4, 16)])
def test_mini_batches_of_actor_and_critic_hold_even_shares(actor, critic):
    """On one device; each size is that of the coarser or of the finer mini-batches."""
    uids = [*"aaaaaaaaaaaaabbbbbbbbbbccccccccc", *"dddddefghijklmnopqrstuvwxyzABCDE"]
    keys = [f"{uid}_{session}_0" for session, uid in enumerate(uids)]
    parts = splits(64, actor, critic)
    assert parts == [4, 4]
    for step in range(20):
        order = dealt_rows(keys, 1, parts, (0, step))
        assert sorted(order) == list(range(64))
        for size in (actor, critic):
            for start in range(0, 64, size):
                held = [uids[i] for i in order[start : start + size]]
                for uid in "abcd":
                    share = uids.count(uid) * size / 64
                    assert floor(share) <= held.count(uid) <= ceil(share)


def test_rows_are_dealt_to_the_actor_where_sizes_do_not_fit():
    assert splits(24, 8, None) == [3]
    assert splits(24, 8, 8) == [3]
    assert splits(24, 8, 12) == [3]  # neither divides the other
    assert splits(24, 8, 5) == [3]  # verl makes no such mini-batches
    assert splits(24, 5, None) == []


@pytest.mark.parametrize("loss", ["vanilla", "sapo", "geo_mean"])
def test_kl_and_entropy_have_the_factors_of_the_configured_mean(loss):
    """Prompts with 1 and 3 completions of 6, 3, 3 and 3 tokens, as in the test by hand."""
    actor = SimpleNamespace(loss_agg_mode="token-mean", policy_loss=SimpleNamespace(loss_mode=loss))
    config: Any = SimpleNamespace(
        actor_rollout_ref=SimpleNamespace(actor=actor),
        critic=SimpleNamespace(loss_agg_mode="token-mean"),
        algorithm=SimpleNamespace(adv_estimator="rloo"),
    )
    budget = PromptBudget(
        BudgetConfig(objective="expected_reward", baseline="none", num_generations=2), warns=False
    )
    budget.allocate(["a", "b"])
    groups = Groups(["a", "b"], ["a_0_0", "b_0_0", "b_1_0", "b_2_0"])
    tokens, rewards = np.array([6.0, 3, 3, 3]), [[1.0], [1.0, 0.0, 0.0]]
    found = weigh_rows(budget, config, groups, tokens, rewards)
    by_prompts = np.array([2, 2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(found.actor, by_prompts * 15 / 18)
    own = 15 / 18 if loss == "vanilla" else 1
    np.testing.assert_allclose(found.advantages, by_prompts * own)


@pytest.mark.parametrize("mode", ["token-mean", "token-sum", "seq-mean-token-sum"])
@pytest.mark.parametrize("prompts", [1, 3, 7, 49])
def test_uniform_weights_change_nothing(mode, prompts):
    tokens = np.random.default_rng(0).integers(1, 50, prompts * 3)
    factors = loss_factors(np.full(prompts * 3, 1 / (prompts * 3)), tokens, mode)
    assert (factors.astype(np.float32) == 1).all()


def test_factors_by_hand():
    # Two prompts with 1 and 3 completions; the prompts weigh the same.
    weights = np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    tokens = np.array([6, 3, 3, 3])
    np.testing.assert_allclose(loss_factors(weights, tokens, "token-sum"), [2, 2 / 3, 2 / 3, 2 / 3])
    # 15 tokens came; counted by prompts they are 2 * 6 + 2/3 * 9 = 18.
    np.testing.assert_allclose(
        loss_factors(weights, tokens, "token-mean"), np.array([2, 2 / 3, 2 / 3, 2 / 3]) * 15 / 18
    )
    # A third prompt without a completion takes its share of the weight with it, in every mode.
    for mode in ("token-mean", "seq-mean-token-sum"):
        starved = loss_factors(weights * 2 / 3, tokens, mode)
        np.testing.assert_allclose(starved, loss_factors(weights, tokens, mode) * 2 / 3)
    assert loss_factors(weights, np.zeros(4), "token-mean").tolist() == [0, 0, 0, 0]
    assert loss_factors(np.zeros(0), np.zeros(0), "token-mean").tolist() == []


def test_advantages_are_whitened_by_prompts():
    """Prompt a: one completion of 2 tokens; prompt b: 3 of 1 token, which weigh as much together."""
    advantages = np.array([[4.0, 2.0], [0.0, 9.0], [0.0, 9.0], [3.0, 9.0]])
    mask = np.array([[1, 1], [1, 0], [1, 0], [1, 0]])
    weights = np.array([2, 2 / 3, 2 / 3, 2 / 3])
    found = whiten(advantages, mask, weights)
    # Weights of tokens 2, 2, 2/3, 2/3, 2/3: the mean is (8 + 4 + 2) / 6.
    mean, sizes = 14 / 6, np.array([2, 2, 2 / 3, 2 / 3, 2 / 3]) / 6
    tokens = np.array([4.0, 2, 0, 0, 3])
    deviation = np.sqrt(sizes @ (tokens - mean) ** 2 * 5 / 4)
    expected = (tokens - mean) / deviation
    np.testing.assert_allclose(found[[0, 0, 1, 2, 3], [0, 1, 0, 0, 0]], expected, rtol=1e-6)
    # What was whitened before is whitened as if it had not been.
    again = whiten(7 * advantages - 3, mask, weights)
    np.testing.assert_allclose(again[mask > 0], found[mask > 0], rtol=1e-6)
    assert whiten(advantages, mask, np.zeros(4)) is advantages


def test_whitening_with_equal_weights_is_verls():
    rng = np.random.default_rng(0)
    advantages, mask = rng.normal(size=(5, 4)), rng.random((5, 4)) < 0.7
    tokens = advantages[mask]
    found = whiten(advantages, mask.astype(float), np.full(5, 0.3))
    np.testing.assert_allclose(
        found[mask], (tokens - tokens.mean()) / tokens.std(ddof=1), rtol=1e-6
    )


def scored_batch(temperature=0.7):
    """Three sequences with prompts of 2, 3 and 1 tokens; of the second a token is masked."""
    prompts = [[1, 2], [3, 4, 5], [6]]
    completions = [[7, 8, 9], [1], [2, 3]]
    masks = [[1, 1, 1], [0], [1, 1]]

    def nested(rows):
        return torch.nested.nested_tensor([torch.tensor(r) for r in rows], layout=torch.jagged)

    return {
        "input_ids": nested([p + c for p, c in zip(prompts, completions, strict=True)]),
        "responses": nested(completions),
        "response_mask": nested(masks),
        "temperature": temperature,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", [SCORES, TERMS])
def test_norms_are_those_of_autograd(packed, dtype, what):
    torch.manual_seed(0)
    batch = scored_batch()
    advantages = torch.nested.nested_tensor(
        [torch.tensor([2.0, -1.0, 0.5]), torch.tensor([3.0]), torch.tensor([-0.5, -0.5])],
        layout=torch.jagged,
    )
    batch["advantages"] = advantages
    layer = nn.Linear(4, 10, bias=False, dtype=dtype)
    sequences = [each.tolist() for each in batch["input_ids"].unbind()]
    hidden = [torch.randn(len(ids), 4, dtype=dtype) for ids in sequences]
    given = (
        torch.cat([*hidden, torch.randn(2, 4, dtype=dtype)]).unsqueeze(0)  # with a pad at the end
        if packed
        else nn.utils.rnn.pad_sequence(hidden, batch_first=True)
    )
    found = completion_norms(layer, given, batch, what)
    expected = []
    each = zip(
        sequences,
        hidden,
        batch["response_mask"].unbind(),
        advantages.unbind(),
        strict=True,
    )
    for ids, states, mask, own in each:
        layer.zero_grad()
        scores = (layer(states).float() / 0.7).log_softmax(-1)[:-1]
        logprobs = scores.gather(1, torch.tensor(ids[1:]).unsqueeze(1))[-len(mask) :, 0]
        (logprobs * mask * (own if what == TERMS else 1)).sum().backward()
        assert layer.weight.grad is not None
        expected.append(float(layer.weight.grad.float().norm()))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=1e-7)
    assert found[1] == 0


class SmallEngine:
    """verl's FSDP engine as far as the hook is concerned: it pads, runs the model, takes its logits."""

    def __init__(self, module):
        self.module = module

    def prepare_model_inputs(self, micro_batch):
        ids = micro_batch["input_ids"]
        return {
            "input_ids": ids.to_padded_tensor(0),
            "attention_mask": torch.ones_like(ids).to_padded_tensor(0),
        }, {}

    def prepare_model_outputs(self, output, output_args, micro_batch, logits_processor_func=None):
        return {"logits": output.logits}

    def forward_step(self, micro_batch):
        inputs, args = self.prepare_model_inputs(micro_batch=micro_batch)
        return self.prepare_model_outputs(
            output=self.module(**inputs), output_args=args, micro_batch=micro_batch
        )


def test_the_hook_measures_what_the_core_does(policy):
    batch = {**scored_batch(temperature=1.0)}
    batch["response_mask"] = torch.ones_like(batch["responses"])
    engine = SmallEngine(policy.model)
    before = dict(vars(engine))
    with torch.no_grad(), norms_measured(engine):
        found = engine.forward_step(batch)[NORMS]
    assert found.shape == (3, 1)
    sequences = []
    for ids, written in zip(batch["input_ids"].unbind(), batch["responses"].unbind(), strict=True):
        cut = len(ids) - len(written)
        sequences.append(TrainingExample(tuple(ids[:cut].tolist()), tuple(written.tolist()), 0, 0))
    expected = gradient_norms(policy, sequences, "last_layer").norms
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-4)
    assert vars(engine) == before
    assert NORMS not in engine.forward_step(batch)
    layer = policy.model.get_output_embeddings()
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_logits_that_are_not_plain_have_no_norms(policy):
    forward = policy.model.forward

    def capped(**inputs):
        output = forward(**inputs)
        output.logits = output.logits.tanh()
        return output

    policy.model.forward = capped
    engine = SmallEngine(policy.model)
    with torch.no_grad(), norms_measured(engine):
        assert engine.forward_step(scored_batch())[NORMS].isnan().all()


def why_no_norms(engine: object) -> str:
    why = obstacle(engine)
    assert why is not None
    return why


def test_engines_that_give_no_norms():
    module = SimpleNamespace(get_output_embeddings=lambda: nn.Linear(2, 2))
    plain = SimpleNamespace(
        module=module, engine_config=SimpleNamespace(use_fused_kernels=False), use_ulysses_sp=False
    )
    assert obstacle(plain) is None
    assert "shows no output layer" in why_no_norms(SimpleNamespace(module=object()))
    plain.use_ulysses_sp = True
    assert "ulysses" in why_no_norms(plain)
    plain.use_ulysses_sp = False
    plain.engine_config.use_fused_kernels = True
    assert "fused" in why_no_norms(plain)
    plain.engine_config.use_fused_kernels = False
    plain.module = SimpleNamespace(get_output_embeddings=lambda: None)
    assert "no plain Linear" in why_no_norms(plain)


class Keys(dict):
    """A part of verl's configuration: keys as attributes too."""

    __getattr__ = dict.__getitem__


def verls(adv_estimator: str, /, **block: object) -> Keys:
    return Keys(
        dibs=block,
        algorithm=Keys(adv_estimator=adv_estimator, use_kl_in_reward=False),
        actor_rollout_ref=Keys(rollout=Keys(n=8)),
    )


ORDER_K = {"objective": "log_likelihood", "baseline": "mean", "estimator": "order_k"}


def test_targets_that_no_count_changes_are_the_budgets_own():
    assert read_block(verls("dibs", **ORDER_K))[1].target == Target("log_likelihood", "mean", 4)
    raft = verls("grpo", algorithm="raft++", estimator="order_k", order=2)
    assert read_block(raft)[1].target == Target("log_likelihood", "none", 2)
    own = verls("dibs", deviation="expected")
    assert read_block(own)[1].target == Target("grpo", "mean", known_deviation=True)
    refused = [
        (
            verls("grpo", deviation="expected"),
            r"divides by the group's own deviation; set it to dibs",
        ),
        (verls("grpo", estimator="order_k"), "order_k is for objective log_likelihood, not grpo"),
        (verls("grpo", **ORDER_K), "is not that of algorithm.adv_estimator grpo"),
        (verls("dibs", **ORDER_K, order=9), "order 9 needs groups of 9 completions"),
    ]
    for config, why in refused:
        with pytest.raises(InputError, match=why):
            read_block(config)


def test_the_state_is_whole_or_not_there(tmp_path):
    budget, other = PromptBudget(BudgetConfig()), PromptBudget(BudgetConfig())
    budget.update(["a", "b"], [[1.0, 0.0], [0.0]], grad_norms=[[1.0, 2.0], [0.1]])
    path = tmp_path / "new" / "state.json"
    assert not load_budget(path, other)
    write_state(path, budget.state())
    assert load_budget(path, other)
    assert other.state() == budget.state()
    assert [each.name for each in path.parent.iterdir()] == ["state.json"]
    for bad in ("{", "[]", '{"step": 1}', '{"step": "x", "pilots": 0}'):
        path.write_text(bad)
        with pytest.raises(InputError, match="no online state of dibs") as refused:
            load_budget(path, other)
        assert "\n" not in str(refused.value)


def run_main(path: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dibs.integrations.verl.main"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ("0.8.2", "needs verl 0.9 or later, below 0.10, and found 0.8.2; "),
        ("0.10.0rc1", "needs verl 0.9 or later, below 0.10, and found 0.10.0rc1; "),
        ("0.9.1", "verl 0.9.1 is installed but does not import ("),
    ],
)
def test_a_verl_that_does_not_do(tmp_path, installed, said):
    folder = tmp_path / f"verl-{installed}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {installed}\n")
    (tmp_path / "verl.py").write_text("import nothing_of_this_name\n")
    done = run_main(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "run: pip install 'dibs-rl[verl]'" in done.stderr


@pytest.mark.parametrize("package", ["trl", "verl"])
def test_a_package_that_is_not_installed(monkeypatch, package):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("dibs.integrations.requirement.version", absent)
    message = rf"^dibs.integrations.{package} needs .*found none; .*'dibs-rl\[{package}\]'$"
    with pytest.raises(ImportError, match=message):
        require(package, "0.9", "0.10")


def test_the_first_supported_version_is_accepted(monkeypatch):
    monkeypatch.setattr("dibs.integrations.requirement.version", lambda name: "1.16.0")
    assert require("trl", "1.16", "2") == "1.16.0"


class Trainer:
    def step(self, batch, metrics, more=None):
        pass


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"step": ("batch", "metrics")}, None),
        ({"step": ("metrics",)}, r"Trainer has no step\(metrics, ...\), on which dibs relies"),
        ({"fit": ()}, r"Trainer has no fit\(...\), on which dibs relies"),
    ],
)
def test_a_method_that_a_plug_in_overrides_is_missing(methods, message):
    hooks = TrainerHooks("numpy", "numpy", "dibs", "1.0", methods)
    if message is None:
        hooks.check(Trainer)
        return
    with pytest.raises(InputError, match=message):
        hooks.check(Trainer)
