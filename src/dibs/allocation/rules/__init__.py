"""Rules of the literature: one file a rule, named as the file is. What it does shows in its functions.

``weights(problem, rng)``
    How often each prompt is drawn. An :class:`.AllocationProblem` of m prompts in, finite weights of at
    least 0 out, float64 [m]. Counts are in proportion to them. In a fixed batch they are whole numbers.
    Over a pool they are expected counts, and what is drawn seldom weighs more, so that the gradient
    stays that of the pool whatever the rule. ``rng`` is for rules that draw at random. They need a pool
    (``RANDOM = True``), since counts of a batch depend on nothing random. ``HISTORY = True`` says that
    the rule looks at what only earlier steps show.
``counts(problem)``
    How many completions each prompt of a fixed batch gets, int64 [m]: for rules that are no proportions.
``more(drawn)``
    How many completions of each prompt to draw in the next round of a step, int64 [N], from what was
    :class:`.Drawn` so far; all 0 ends the step's sampling. ``trained(drawn)``, if there is one, says
    which prompts are trained on, bool [N]: such a rule chooses among a pool of candidates. ``KEEP``
    names a rule for which completions are kept. ``LEAST_GROUP`` is the smallest group that teaches
    something; 1 if it is left out.
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
from dibs.allocation.returned import numbers_of
from dibs.plugins import called, import_function
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


def is_random(name: str) -> bool:
    """Whether a rule draws at random, and so needs a pool."""
    return bool(getattr(_MODULES.get(name), "RANDOM", False))


def check_place(name: str, *, pool: bool) -> None:
    """InputError for counts of a batch over a pool, and for a rule at random without a pool."""
    if pool and ":" not in name and name not in ("min_variance", *WEIGHTS):
        raise InputError(
            f"allocator {name} decides counts of a fixed batch; leave select.pool out, or choose a rule "
            "that weighs prompts (docs/rules.md)"
        )
    if not pool and is_random(name):
        raise InputError(
            f"allocator {name} draws at random, so it needs a pool: select.pool of dibs train, or "
            "PromptBudget.choose"
        )


def check_mode(name: str, mode: str, key: str) -> None:
    """InputError for a rule that looks at earlier steps in another mode than online.

    ``key``: holds the mode.
    """
    if mode != "online" and getattr(_MODULES.get(name), "HISTORY", False):
        raise InputError(
            f"allocator {name} needs the history of earlier steps; set {key} to online, in place of "
            f"{mode}"
        )


def weights_of(
    name: str, problem: AllocationProblem, rng: np.random.Generator | None = None
) -> np.ndarray:
    """What a rule, or a user's ``module:function``, gives each prompt, float64 [m].

    Raises InputError for weights that cannot be, and for a rule for counts of a fixed batch.
    """
    check_place(name, pool=True)
    own, m, who = ":" in name, len(problem.stats), f"allocator {name}"
    function = import_function(name, "allocator") if own else _MODULES[name].weights
    if own and rng is not None:
        (rng,) = rng.spawn(1)  # what is rounded at random later must not draw the user's numbers
    given = called(name, "allocator", function, problem, rng)
    wanted = f"one weight for each of {m} prompts"
    weights = numbers_of(given, m, who, what="weights", wanted=wanted)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"{who} returned weights that are not finite or below 0")
    if own and not weights.any():
        raise InputError(f"{who} returned weights that are all 0")
    return weights
