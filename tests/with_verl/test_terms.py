"""The terms of verl's losses that advantages do not multiply, with weights, against verl's functions."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.verl
pytest.importorskip("verl.trainer")

import scene  # noqa: E402  where there is no verl, nothing of this is imported

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean")
LENGTHS = (1, 4, 3, 2)
WEIGHTS = torch.tensor([2.0, 0.5, 0.0, 1.5])


def nested(rows):
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


def with_field(data, fields):
    found = data.copy()
    for name, each in fields.items():
        found[name] = each
    return found


def batch():
    """4 rows with prompts of one token, as the engine gives them to a loss."""
    from verl.utils import tensordict_utils

    generator = torch.Generator().manual_seed(0)

    def numbers():
        return nested(torch.randn(n, generator=generator) for n in LENGTHS)

    rows = {
        "input_ids": nested(torch.ones(n + 1, dtype=torch.long) for n in LENGTHS),
        "prompts": nested(torch.ones(1, dtype=torch.long) for _ in LENGTHS),
        "responses": nested(torch.ones(n, dtype=torch.long) for n in LENGTHS),
        "response_mask": nested(torch.ones(n, dtype=torch.long) for n in LENGTHS),
        "attention_mask": nested(torch.ones(n + 1, dtype=torch.long) for n in LENGTHS),
        **{name: numbers() for name in ("old_log_probs", "advantages", "ref_log_prob")},
        **{name: numbers() for name in ("values", "returns")},
    }
    more = {"dp_size": 1, "batch_num_tokens": 10, "global_batch_size": 4}
    data = tensordict_utils.get_tensordict(rows, non_tensor_dict=more)
    generator.manual_seed(1)
    return data, nested(torch.randn(n + 1, generator=generator) for n in LENGTHS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kl", [True, False])
def test_kl_and_entropy_are_weighed(compose, mode, kl):
    from verl.workers.utils.losses import ppo_loss

    from dibs.integrations.verl.weighted_terms import ACTOR_WEIGHTS, actor_loss

    config = actor_config(compose, mode, kl)
    data, logprobs = batch()
    data["advantages"] = nested(torch.zeros(n) for n in LENGTHS)
    torch.manual_seed(0)
    entropy = nested(torch.rand(n + 1) for n in LENGTHS)
    output = {"log_probs": logprobs, "entropy": entropy}
    theirs, metrics = ppo_loss(config, output, data)
    ones, same = actor_loss(config, output, with_field(data, {ACTOR_WEIGHTS: torch.ones(4, 1)}))
    assert float(ones) == pytest.approx(float(theirs), rel=1e-6)
    assert set(same) == set(metrics)
    assert float(actor_loss(config, output, data)[0]) == float(theirs)
    parts = []
    for i in range(4):
        alone = torch.eye(4)[i].unsqueeze(1)
        parts.append(actor_loss(config, output, with_field(data, {ACTOR_WEIGHTS: alone}))[0])
    found = actor_loss(config, output, with_field(data, {ACTOR_WEIGHTS: WEIGHTS.unsqueeze(1)}))[0]
    assert float(sum(parts)) == pytest.approx(float(theirs), rel=1e-5)
    assert float(found) == pytest.approx(float(WEIGHTS @ torch.stack(parts)), rel=1e-5)
    if mode == "token-sum":  # by hand: entropy over the completion's own positions, less the KL
        rows = zip(logprobs.unbind(), data["ref_log_prob"].unbind(), entropy.unbind(), strict=True)
        by_hand = []
        for own, reference, spread in rows:
            ratio = reference - own[:-1]
            penalty = (ratio.exp() - ratio - 1).clamp(-10, 10).sum() * config.kl_loss_coef * kl
            by_hand.append(penalty - config.entropy_coeff * spread[:-1].sum())
        assert float(found) == pytest.approx(float(WEIGHTS @ torch.stack(by_hand)), rel=1e-5)


def actor_config(compose, mode, kl):
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass

    config = compose(
        *scene.GRPO,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.actor.entropy_coeff=0.1",
        f"actor_rollout_ref.actor.use_kl_loss={kl}",
        "actor_rollout_ref.actor.kl_loss_coef=0.5",
        f"actor_rollout_ref.actor.loss_agg_mode={mode}",
    ).actor_rollout_ref.actor
    OmegaConf.resolve(config)
    return omega_conf_to_dataclass(config)


@pytest.mark.parametrize("mode", MODES)
def test_the_critics_errors_are_weighed(compose, mode):
    from types import SimpleNamespace

    from verl.workers.utils.losses import value_loss

    from dibs.integrations.verl.weighted_terms import CRITIC_WEIGHTS, critic_loss

    config = SimpleNamespace(cliprange_value=0.5, loss_agg_mode=mode, loss_scale_factor=None)
    data, values = batch()
    output = {"values": values}
    theirs, metrics = value_loss(config, output, data)
    assert float(critic_loss(config, output, data)[0]) == float(theirs)
    ones, same = critic_loss(config, output, with_field(data, {CRITIC_WEIGHTS: torch.ones(4, 1)}))
    assert float(ones) == pytest.approx(float(theirs), rel=1e-6)
    assert {name: type(each) for name, each in same.items()} == {
        name: type(each) for name, each in metrics.items()
    }
    parts = torch.stack(
        [
            critic_loss(config, output, with_field(data, {CRITIC_WEIGHTS: row.unsqueeze(1)}))[0]
            for row in torch.eye(4)
        ]
    )
    found = critic_loss(config, output, with_field(data, {CRITIC_WEIGHTS: WEIGHTS.unsqueeze(1)}))[0]
    assert float(parts.sum()) == pytest.approx(float(theirs), rel=1e-5)
    assert float(found) == pytest.approx(float(WEIGHTS @ parts), rel=1e-5)
