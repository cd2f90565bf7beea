"""What the losses of TRL and verl divide by; tests/with_trl and tests/with_verl ask the losses."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.prompt_budget import BudgetConfig, PromptBudget
from dibs.integrations.loss_lengths import (
    Normalization,
    trained_norms,
    trl_normalization,
    verl_normalization,
)
from dibs.integrations.verl.options import aggregation
from dibs.types import InputError


@pytest.mark.parametrize("loss_type", ["grpo", "sapo"])
def test_trls_losses_over_each_length(loss_type):
    assert trl_normalization(loss_type) == "sequence"


@pytest.mark.parametrize("loss_type", ["dr_grpo", "luspo", "bnpo", "dapo", "cispo", "vespo"])
def test_trls_losses_with_one_divisor(loss_type):
    assert trl_normalization(loss_type) == "none"


def test_a_loss_of_trl_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match=r"GRPOConfig.loss_type newpo: it is not known") as refused:
        trl_normalization("newpo")
    assert "\n" not in str(refused.value)


class Actor:
    """verl's actor configuration, as far as it decides what a loss divides by."""

    def __init__(self, loss_mode: str, loss_agg_mode: str) -> None:
        self.policy_loss = type("Loss", (), {"loss_mode": loss_mode})
        self.loss_agg_mode = loss_agg_mode


@pytest.mark.parametrize(
    ("loss", "mode", "expected"),
    [
        ("vanilla", "token-mean", "none"),
        ("vanilla", "token-sum", "none"),
        ("vanilla", "seq-mean-token-sum", "none"),
        ("vanilla", "seq-mean-token-sum-norm", "none"),
        ("vanilla", "seq-mean-token-mean", "sequence"),
        ("gspo", "token-mean", "none"),
        ("dibs_raft++", "seq-mean-token-mean", "sequence"),
        ("sapo", "token-mean", "sequence"),
        ("geo_mean", "token-mean", "sequence"),
    ],
)
def test_verls_losses(loss, mode, expected):
    assert verl_normalization(aggregation(Actor(loss, mode))) == expected


def test_norms_by_hand():
    norms, tokens = np.array([10.0, 30.0, 0.0]), np.array([10, 100, 0])
    assert trained_norms(norms, tokens, "sequence").tolist() == [1.0, 0.3, 0.0]
    assert trained_norms(norms, tokens, "none").tolist() == [10.0, 30.0, 0.0]
    assert trained_norms(np.zeros(0), np.zeros(0), "sequence").tolist() == []


@pytest.mark.parametrize(("normalization", "expected"), [("none", [6, 19]), ("sequence", [19, 6])])
def test_the_loss_decides_which_prompts_get_more(normalization: Normalization, expected):
    """Scores of one token have norm 1 and are at right angles: ||s|| is the root of the length.

    So completions of 10 and of 100 tokens have norms in the ratio 1 to 3.16, or 3.16 to 1 where each is
    divided by its length. Of 50 completions for two prompts of each kind, 6 and 19 are each one's.
    """
    budget = PromptBudget(
        BudgetConfig(objective="expected_reward", baseline="leave_one_out", half_life=1e6),
        length_normalization=normalization,
    )
    names, lengths = ["a", "b", "c", "d"], np.repeat([[10.0], [10.0], [100.0], [100.0]], 400, 1)
    rewards = [[1.0, 0.0] * 200] * 4
    norms = trained_norms(np.sqrt(lengths), lengths, normalization)
    budget.update(names, rewards, lengths=list(lengths), grad_norms=list(norms))
    counts = budget.allocate(names, 50)
    np.testing.assert_allclose(counts, np.repeat(expected, 2), atol=1)
