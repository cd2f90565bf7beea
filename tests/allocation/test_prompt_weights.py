"""How much prompts count in the objective: by hand, in a step's weights, and where it has no use."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.allocation.choice import choose
from dibs.allocation.cross_fit import pooled, undivided
from dibs.allocation.prompt_weights import curverl_weights
from dibs.config import Config
from dibs.config.load import load_config
from dibs.types import InputError, PromptStats
from tiny_groups import make_prompt

PROMPTS = [make_prompt(f"{i:02x}", (i,)) for i in range(4)]
TRIALS = np.full(4, 1e6)


def test_mass_over_cumulative_mass():
    """Five bins: two prompts in bin 1, one in bin 3, one in bin 4."""
    found = curverl_weights(np.array([0.25, 0.3, 0.75, 0.9]), 5)
    assert found == pytest.approx([1, 1, 1 / 3, 1 / 4])
    assert curverl_weights(np.array([0.5]), 5) == pytest.approx([1])
    assert curverl_weights(np.array([0.999, 1e-9]), 1) == pytest.approx([1, 1])


def config(**more) -> Config:
    return Config.model_validate(
        {
            "algorithm": {"name": "grpo", "prompt_weight": "curverl"},
            "estimate": {"mode": "online"},
            "train": {"prompts_per_step": 4},
            "allocate": {"allocator": "uniform", "num_generations": 4},
            **more,
        }
    )


def stats(rates, k: int) -> PromptStats:
    return PromptStats([f"{i}" for i in range(k)], TRIALS[:k], rates * TRIALS[:k], np.ones(k))


def test_shares_of_a_batch_are_weighed():
    rates = np.array([0.25, 0.3, 0.75, 0.9])
    choice = choose(PROMPTS, undivided(stats(rates, 4), PROMPTS), config(), 1)
    assert choice.parts[0].shares == pytest.approx(np.array([1, 1, 1 / 3, 1 / 4]) / 4)


def test_shares_over_a_pool_are_weighed_by_all_of_its_prompts():
    """Three prompts share the row of p = .3, and one has p = .75."""
    estimate = pooled(stats(np.array([0.3, 0.75]), 2), np.array([0, 0, 0, 1]))
    own = config(select={"pool": "all"}, train={"prompts_per_step": 2})
    plain = config(
        select={"pool": "all"}, train={"prompts_per_step": 2}, algorithm={"name": "grpo"}
    )
    weighed, even = (choose(PROMPTS, estimate, each, 1) for each in (own, plain))
    assert [p.prompt_id for p in weighed.prompts] == [p.prompt_id for p in even.prompts]
    expected = {"00": 1, "01": 1, "02": 1, "03": 1 / 4}
    factors = np.asarray(weighed.parts[0].shares) / np.asarray(even.parts[0].shares)
    assert factors == pytest.approx([expected[str(p.prompt_id)] for p in weighed.prompts])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"estimate.mode": "none"}, "needs accept rates"),
        ({"allocate.allocator": "min_variance"}, "is not known to allocate.allocator min_variance"),
        ({"allocate.rounds": "dapo"}, "weighs prompts; allocate.rounds"),
        ({"algorithm.estimator": "flat"}, "weighs prompts; allocate.rounds"),
    ],
)
def test_where_it_has_no_use(more, said):
    values = {
        "algorithm.name": "grpo",
        "algorithm.prompt_weight": "curverl",
        "allocate.allocator": "uniform",
        "estimate.mode": "online",
    } | more
    with pytest.raises(InputError, match=said):
        load_config(None, values)
