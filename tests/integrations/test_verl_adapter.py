"""The parts of the verl adapter that need no verl; tests/with_verl has those that do."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

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
from dibs.integrations.verl.last_layer import (
    NORMS,
    SCORES,
    TERMS,
    completion_norms,
    norms_measured,
    obstacle,
)
from dibs.integrations.verl.options import read_block
from dibs.model.grad_norms import gradient_norms
from dibs.types import InputError, TrainingExample


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
