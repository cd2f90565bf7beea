"""Rules of the literature: one file a rule, named as the file is. What it does shows in its functions.

``weights(problem, rng)``
    How often each prompt is drawn. An :class:`.AllocationProblem` of m prompts in, finite weights of at
    least 0 out, float64 [m]. Counts are in proportion to them. In a fixed batch they are whole numbers.
    Over a pool they are expected counts, and what is drawn seldom weighs more, so that the gradient
    stays that of the pool whatever the rule. ``rng`` is for rules that draw at random. They need a pool
    (``RANDOM = True``), since counts of a batch depend on nothing random.
``counts(problem)``
    How many completions each prompt of a fixed batch gets, int64 [m]: for rules that are no proportions.
``more(drawn)``
    How many completions of each prompt to draw in the next round of a step, int64 [N], from what was
    :class:`.Drawn` so far; all 0 ends the step's sampling. ``trained(drawn)``, if there is one, says
    which prompts are trained on, bool [N]: such a rule chooses among a pool of candidates. ``KEEP``
    names a rule for which completions are kept.
``keep(rewards, accepted, count)``
    Which ``count`` of a prompt's n completions are trained on, as positions. ``WHOLE_BASELINE`` says
    whether the others still enter the baseline and the deviation of the group.

A file here is all that a rule takes: it is found by its name. A rule knows numpy, the problem or what
was drawn, and no other part of the package.

Every file says whether the gradient stays unbiased. That is meant of an estimator whose expectation does
not depend on the count of a prompt (docs/estimators.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import numpy as np

from dibs.allocation.problem import AllocationProblem
from dibs.types import InputError

_MODULES = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
}


def _having(function: str) -> tuple[str, ...]:
    return tuple(sorted(name for name, module in _MODULES.items() if hasattr(module, function)))


WEIGHTS = _having("weights")
"""Rules for how often prompts are drawn, by weights."""
COUNTS = _having("counts")
"""Rules for counts of a fixed batch alone."""
ROUNDS = _having("more")
"""Rules that draw in rounds."""
KEEPERS = _having("keep")
"""Rules for which completions are trained on."""


def module_of(name: str) -> ModuleType:
    """The file of a rule."""
    return _MODULES[name]


def needs_batch(name: str) -> str:
    """Why a rule for counts has no use over a pool, and what to do."""
    return (
        f"allocator {name} decides counts of a fixed batch; leave select.pool out, or choose a rule "
        "that weighs prompts (docs/rules.md)"
    )


def is_random(name: str) -> bool:
    """Whether a rule draws at random, and so needs a pool."""
    return bool(getattr(_MODULES[name], "RANDOM", False))


def weights_of(
    name: str, problem: AllocationProblem, rng: np.random.Generator | None = None
) -> np.ndarray:
    """What a rule gives each prompt, float64 [m].

    Raises InputError for weights that cannot be, and for a rule for counts of a fixed batch.
    """
    if name in COUNTS:
        raise InputError(needs_batch(name))
    weights = np.asarray(_MODULES[name].weights(problem, rng), dtype=np.float64)
    if weights.shape != (len(problem.stats),):
        raise InputError(
            f"rule {name} gave weights of shape {weights.shape} to {len(problem.stats)} prompts"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"rule {name} gave weights that are not finite or below 0")
    return weights
