"""Which completions are measured: a random choice of each class, and no more than is affordable."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.training.dealing import deal
from dibs.training.norm_sample import NormSample, choose_measured
from dibs.types import TrainingExample

PROMPTS, SIZE = 16, 8


def step(context: int = 9, completion: int = 8, idle: int = 0) -> list[TrainingExample]:
    """16 groups of 8; the completions of the first ``idle`` have no advantage."""
    return [
        TrainingExample((g,) * context, (1,) * completion, float(g >= idle), 1.0)
        for g in range(PROMPTS)
        for _ in range(SIZE)
    ]


def classes(accepted: int) -> list[bool]:
    return [i % SIZE < accepted for i in range(PROMPTS * SIZE)]


def chosen(made, accepted=3, share=None, updates=1, shared=True, seed=0) -> np.ndarray:
    parts = deal([e.context_ids for e in made], updates, (seed,))
    sample = NormSample.of(classes(accepted), share)
    return choose_measured(made, parts, sample, shared=shared, seed=(seed,))


def test_every_completion_of_a_class_is_as_likely_as_any_other():
    """One of 8 is measured: a class has half of the chances, its members even shares of it."""
    found = np.mean(
        [chosen(step(), share=1 / 8, seed=s).reshape(PROMPTS, SIZE) for s in range(400)], 0
    )
    expected = np.repeat([1 / 2 / 3, 1 / 2 / 5], [3, 5])
    assert np.abs(found.mean(0) - expected).max() < 0.02  # five standard errors


def test_a_quarter_is_one_of_each_class_of_every_group():
    found = chosen(step(), share=1 / 4).reshape(PROMPTS, SIZE)
    assert found.sum() == PROMPTS * 2
    assert (np.abs(found.sum(1) - 2) <= 1).all()
    assert (found[:, :3].sum(1) <= 2).all()


def test_all_with_an_advantage_and_few_without():
    found = chosen(step(idle=8), share=1.0).reshape(PROMPTS, SIZE)
    assert found[8:].all()
    assert found[:8].sum() < 16


@pytest.mark.parametrize("updates", [1, 4])
def test_the_first_update_is_measured_first(updates):
    made = step()
    parts = deal([e.context_ids for e in made], updates, (0,))
    found = chosen(made, share=1 / 8, updates=updates)
    assert found[parts[0]].sum() == found.sum() == 16


def test_what_is_affordable_by_hand():
    """Shared: 16 x (9 + 64) tokens, of which a tenth is 117; one costs 1.3 x 17 - 8 = 14.1 more.

    Not shared: 128 x 17 tokens, a tenth is 218; one costs .3 x 17 = 5.1 more. Prompts of 256 and
    completions of 64: 12,288 and 352. Without an advantage there is nothing to add to.
    """
    assert chosen(step()).sum() in (8, 9)  # 117 / 14.1 = 8.3
    assert chosen(step(), shared=False).sum() in (42, 43)  # 218 / 5.1 = 42.7
    assert chosen(step(256, 64)).sum() in (3, 4)  # 16 x 768 / 10 / 352 = 3.5
    assert chosen(step(idle=PROMPTS)).sum() == 0


@pytest.mark.parametrize(
    ("context", "completion", "share", "expected"),
    [
        # 4 x 2,000 + 32 x 64 tokens, of which a tenth is 1,005; one costs 1.3 x 2,064 - 64 more.
        (2000, 64, None, 1005 / (1.3 * 2064 - 64)),
        (9, 8, 0.01, 0.32),
    ],
)
def test_less_than_one_is_one_in_some_steps(context, completion, share, expected):
    made = [
        TrainingExample((g,) * context, (1,) * completion, 1.0, 1.0)
        for g in range(4)
        for _ in range(SIZE)
    ]
    sample = NormSample.of([i % SIZE < 3 for i in range(32)], share)
    found = [
        choose_measured(made, [range(32)], sample, shared=True, seed=(s,)).sum() for s in range(200)
    ]
    assert set(found) == {0, 1}
    assert np.mean(found) == pytest.approx(expected, abs=0.14)  # four standard errors


def test_a_class_that_is_learned_from_is_not_thinned():
    """Rewards 0, 1/2 and 1 in turn: the middle ones are accepted, and have no advantage.

    Half of the prompts are learned from. There every accepted one is as likely as any other.
    """
    made = [
        TrainingExample((g,), (1,), (i % 3 - 1.0) * (g >= 8), 1.0)
        for g in range(PROMPTS)
        for i in range(6)
    ]
    sample = NormSample.of([i % 3 > 0 for i in range(len(made))], 1.0)
    found = choose_measured(made, [range(len(made))], sample, shared=True, seed=(0,))
    assert found.reshape(PROMPTS, 6)[8:].all()
    assert 0 < found.reshape(PROMPTS, 6)[:8].sum() < 12
    often = [
        choose_measured(
            made[48:],
            [range(48)],
            NormSample.of([i % 3 > 0 for i in range(48)], 1 / 6),
            shared=True,
            seed=(s,),
        )
        for s in range(300)
    ]
    of_place = np.reshape(often, (-1, 3)).mean(0)
    assert of_place == pytest.approx([1 / 4, 1 / 8, 1 / 8], abs=0.03)


def test_an_empty_step_measures_nothing():
    found = choose_measured([], [[]], NormSample.of([], None), shared=True, seed=(0,))
    assert found.tolist() == []
