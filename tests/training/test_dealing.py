"""Completions dealt to updates: every prompt as evenly as can be, and no update favored."""

from __future__ import annotations

import numpy as np
import pytest

from dibs.training.dealing import deal


def prompts(counts):
    return np.repeat(np.arange(len(counts)), counts).tolist()


@pytest.mark.parametrize("updates", [1, 2, 4, 7])
@pytest.mark.parametrize("counts", [[], [1], [0, 2], [8] * 5, [1, 3, 9, 19], [1] * 9, [30, 1, 2]])
def test_prompts_and_sizes_are_even(counts, updates):
    # The parts of a step mix the prompts.
    line = np.random.default_rng(1).permutation(prompts(counts)).tolist()
    for step in range(20):
        dealt = deal(line, updates, (0, step))
        assert sorted(i for part in dealt for i in part) == list(range(len(line)))
        sizes = [len(part) for part in dealt]
        assert max(sizes) - min(sizes) <= 1
        for i, count in enumerate(counts):
            held = [sum(line[k] == i for k in part) for part in dealt]
            assert set(held) <= {count // updates, -(-count // updates)}


def test_every_update_has_the_mean_of_the_step():
    """Counts 1, 3, 9, 19 over 4 updates: factors of prompts in the first were 4, 0, 1.33 and .84.

    Means of 4,000 seeds; the factor of the first prompt is 0 or 4, with a deviation of sqrt(3). The
    bound of 5 standard errors leaves 1 chance in 100,000 over all 16 numbers.
    """
    counts, updates, seeds = [1, 3, 9, 19], 4, 4000
    line = prompts(counts)
    factors = np.zeros((seeds, updates, len(counts)))
    for seed in range(seeds):
        for u, part in enumerate(deal(line, updates, (3, seed))):
            held = np.bincount([line[i] for i in part], minlength=len(counts))
            factors[seed, u] = updates * held / counts
    assert np.allclose(factors.mean(1), 1)
    error = factors.std(0) / np.sqrt(seeds)
    assert (np.abs(factors.mean(0) - 1) < 5 * error).all()


def test_single_completions_do_not_meet_in_one_update():
    """Counts 1, 3, 1, 3, ...: in the given order all prompts of one would enter the same update."""
    counts = [1, 3] * 16
    line = prompts(counts)
    most = [
        max(sum(counts[line[i]] == 1 for i in part) for part in deal(line, 4, (0, step)))
        for step in range(50)
    ]
    assert np.mean(most) < 8


def test_one_update_takes_all_in_order():
    assert deal(["b", "a", "b", "c"], 1, (5,)) == [[0, 1, 2, 3]]
    assert deal([], 3) == [[], [], []]


def test_the_seed_decides():
    line = prompts([2, 3, 4, 5])
    assert deal(line, 4, (1, 2)) == deal(line, 4, (1, 2))
    assert len({str(deal(line, 4, (1, step))) for step in range(20)}) > 10
