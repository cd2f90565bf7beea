"""The rows of a verl batch: their groups, mini-batches and weights; nothing here needs verl."""

from __future__ import annotations

from math import ceil, floor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.prompt_budget import PromptBudget
from dibs.integrations.verl.groups import Groups, dealt_rows, splits
from dibs.integrations.verl.loss_factors import loss_factors
from dibs.integrations.verl.row_weights import weigh_rows, whiten


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
