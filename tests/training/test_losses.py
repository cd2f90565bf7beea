"""Losses against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dibs.training.losses import PolicyLoss, clipped_surrogate, importance_weights, kl_to_reference


def ratios(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def test_clipping_by_hand():
    old = torch.zeros(1, 5, dtype=torch.float64)
    logprobs = ratios(0.5, 0.9, 1.0, 1.25, 1.5)
    up, stopped = clipped_surrogate(logprobs, old, torch.tensor([2.0]), 0.2, 0.28)
    assert up.tolist()[0] == pytest.approx([1.0, 1.8, 2.0, 2.5, 2.56])
    assert stopped.tolist() == [[False, False, False, False, True]]
    down, stopped = clipped_surrogate(logprobs, old, torch.tensor([-2.0]), 0.2, 0.28)
    assert down.tolist()[0] == pytest.approx([-1.6, -1.8, -2.0, -2.5, -3.0])
    assert stopped.tolist() == [[True, False, False, False, False]]


def test_a_clipped_token_has_no_gradient():
    logprobs = ratios(1.1, 1.5).requires_grad_()
    old = torch.zeros_like(logprobs)
    surrogate, _ = clipped_surrogate(logprobs, old, torch.tensor([1.0]), 0.2, 0.28)
    surrogate.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[0] == pytest.approx([1.1, 0.0])


def test_kl_by_hand():
    # d = ln 2: 2 - ln 2 - 1; d = 0: 0; d = -ln 2: 1/2 + ln 2 - 1.
    kl = kl_to_reference(torch.zeros(3), torch.tensor([math.log(2), 0.0, -math.log(2)]))
    assert kl.tolist() == pytest.approx([1 - math.log(2), 0.0, math.log(2) - 0.5])


def test_raft_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss, sums = PolicyLoss(clip=None)(
        logprobs, mask, torch.tensor([2.0, 0.0]), torch.tensor([0.25, 0.5])
    )
    assert loss.item() == pytest.approx(0.25 * 2 * 3)
    assert sums["tokens"].item() == 3


def test_ratio_loss_with_kl_by_hand():
    logprobs = torch.tensor([[0.0, -5.0]])
    old = torch.tensor([[math.log(0.8), -5.0]])  # ratio 1.25
    ref = torch.tensor([[math.log(2), 7.0]])
    mask = torch.tensor([[True, False]])
    loss, sums = PolicyLoss(clip=(0.2, 0.2), beta=0.1)(
        logprobs, mask, torch.tensor([3.0]), torch.tensor([0.5]), old, ref
    )
    kl = 1 - math.log(2)
    assert loss.item() == pytest.approx(0.5 * (-1.2 * 3 + 0.1 * kl))
    assert sums["kl"].item() == pytest.approx(kl)
    assert sums["clipped_tokens"].item() == 1


def test_importance_weights_by_hand():
    """Ratios 1.5, 3 and 0.25, and one on padding that must not count."""
    old = torch.tensor([[1.5, 3.0, 0.25, 9.0]]).log()
    mask = torch.tensor([[True, True, True, False]])

    def weights(mode):
        found = importance_weights(old, torch.zeros(1, 4), mask, mode, cap=2.0)
        return found[0, :3].tolist()

    assert weights("token_truncate") == pytest.approx([1.5, 2.0, 0.25])
    assert weights("token_mask") == pytest.approx([1.5, 0.0, 0.0])
    assert weights("sequence_truncate") == pytest.approx([1.125] * 3)  # 1.5 x 3 x 0.25
    assert weights("sequence_mask") == pytest.approx([1.125] * 3)
    far = importance_weights(old * 2, torch.zeros(1, 4), mask, "sequence_truncate", cap=1.2)
    assert far[0, :3].tolist() == pytest.approx([1.2] * 3)
    assert not importance_weights(old * 9, torch.zeros(1, 4), mask, "sequence_mask", cap=1.2).any()


def test_importance_weights_carry_no_gradient_and_leave_the_kl_alone():
    old = torch.tensor([[2.0]]).log()
    logprobs = torch.zeros(1, 1, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = PolicyLoss(None, 0.5, "token_truncate", 1.5)
    ref = torch.tensor([[math.log(2)]])
    ones = torch.ones(1)
    value, _ = loss(logprobs, mask, ones, ones, old, ref, torch.zeros(1, 1))
    value.backward()
    assert logprobs.grad is not None
    # 1.5 x -logprob, and 0.5 x KL whose slope at d = ln 2 is 1 - 2.
    assert logprobs.grad.item() == pytest.approx(-1.5 + 0.5 * (1 - 2))
