"""Dropout in updates: equal masks before and after the weights move, and none of the model's own."""

from __future__ import annotations

import pytest
import torch

from dibs.config import UpdateConfig
from dibs.processes import Processes
from dibs.training.dropout import dropout_masks, set_update_mode
from dibs.training.losses import PolicyLoss
from dibs.training.updater import Updater
from tiny_gradients import make_policy, with_lora
from tiny_policies import examples

STRICT = PolicyLoss(clip=(1e-4, 1e-4))


class OneOfTwo(Processes):
    """A process of two; the other adds nothing."""

    def own_share(self, items, costs):
        return list(items)

    def all_reduce_sum(self, tensors):
        pass

    def all_gather(self, mine):
        return [mine]


def trained(policy, *, state=None, rank=0, seed=0, updates=4, rate=1e-2, steps=1):
    """Metrics and state of an updater after some steps, and the weights in one vector."""
    options = UpdateConfig(learning_rate=rate, updates_per_step=updates)
    maker = Updater(policy, STRICT, options, 100, processes=OneOfTwo(rank, 2), seed=seed)
    if state is not None:
        maker.load_state_dict(state)
    for _ in range(steps):
        metrics = maker.step(examples(policy, 12))
    moved = torch.cat([p.detach().flatten() for p in maker.parameters])
    return metrics, maker.state_dict(), moved


def test_no_token_is_clipped_before_the_weights_move(policy):
    metrics, *_ = trained(with_lora(make_policy(policy)), rate=1e-30)
    assert metrics.clip_fraction == 0


def test_masks_depend_on_the_seed_and_the_process_and_on_nothing_else(policy):
    def fresh(**how):
        adapted = with_lora(make_policy(policy))
        torch.manual_seed(how.pop("noise", 1))
        return trained(adapted, **how)[2]

    one = fresh()
    assert torch.equal(one, fresh(noise=2))
    assert not torch.equal(one, fresh(seed=1))
    assert not torch.equal(one, fresh(rank=1))


def test_a_resumed_process_goes_on_with_its_own_masks(policy):
    whole = trained(with_lora(make_policy(policy)), rank=1, steps=2)[2]
    adapted = with_lora(make_policy(policy))
    _, state, _ = trained(adapted, rank=1)
    torch.manual_seed(77)
    assert torch.equal(trained(adapted, rank=1, state=state)[2], whole)


def test_the_models_own_dropout_is_off(policy):
    moved = [trained(make_policy(policy, attention_dropout=rate))[2] for rate in (0.0, 0.5)]
    assert torch.equal(*moved)


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_activations_are_checkpointed_in_updates(policy):
    frugal = with_lora(make_policy(policy))
    frugal.model.gradient_checkpointing_enable({"use_reentrant": False})
    frugal.model.enable_input_require_grads()
    _, _, moved = trained(frugal)
    assert frugal.model.base_model.model.model.layers[0].training
    torch.testing.assert_close(moved, trained(with_lora(make_policy(policy)))[2])


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with dropout_masks(0, 1, 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with dropout_masks(0, 1, 2):
        assert torch.equal(torch.rand(3), inside)


def test_the_mode_of_updates(policy):
    adapted = with_lora(make_policy(policy))
    set_update_mode(adapted.model)
    active = {name for name, module in adapted.model.named_modules() if module.training}
    assert active
    assert {name for name in active if not name.endswith("lora_dropout.default")} == set()
