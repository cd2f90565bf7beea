"""Rules of the literature for how often each prompt is drawn: one file a rule, named as the file is.

A rule has a function ``weights(problem, rng)``: an :class:`.AllocationProblem` of m prompts in, finite
weights of at least 0 out, float64 [m]. Counts are in proportion to them. In a fixed batch they are whole
numbers; over a pool they are expected counts, and what is drawn seldom weighs more, so that the gradient
stays that of the pool whatever the rule. ``rng`` is for rules that draw at random. They need a pool
(``RANDOM = True``), since counts of a batch depend on nothing random.

A file here is all that a rule takes: it is found by its name. A rule knows numpy and the problem, and no
other part of the package.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import numpy as np

from dibs.allocation.problem import AllocationProblem
from dibs.types import InputError

Weights = Callable[[AllocationProblem, np.random.Generator | None], np.ndarray]
NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""All rules."""


def is_random(name: str) -> bool:
    """Whether a rule draws at random, and so needs a pool."""
    return bool(getattr(importlib.import_module(f"{__name__}.{name}"), "RANDOM", False))


def weights_of(
    name: str, problem: AllocationProblem, rng: np.random.Generator | None = None
) -> np.ndarray:
    """What a rule gives each prompt, float64 [m].

    Raises InputError for weights that cannot be.
    """
    rule: Weights = importlib.import_module(f"{__name__}.{name}").weights
    weights = np.asarray(rule(problem, rng), dtype=np.float64)
    if weights.shape != (len(problem.stats),):
        raise InputError(
            f"rule {name} gave weights of shape {weights.shape} to {len(problem.stats)} prompts"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"rule {name} gave weights that are not finite or below 0")
    return weights
