"""Whole steps of any rule on measured completions: noise, cost, and the gradient expected. numpy only.

No formula judges a rule that decides by the rewards of its own step. So steps are simulated:
:class:`.PromptBudget` makes them of rewards that were measured. Gradients are not simulated. Given its
rewards, a step has the gradient ``sum_p w_p' B_p`` on average, and about it the independent parts ``c_j
(s_j - E[s_j | r_j])``, with c, w, b, B and M of :mod:`.group_variance`. So

    ``E ||g||^2 = E[sum_pq w_p' B_p B_q' w_q + sum_j c_j^2 (||s_j||^2 - b_j' M b_j)]``.

The measured prompts stand for a data set in which each occurs equally often. What decides counts before
a step, if anything does, are some completions of every prompt; others make the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dibs.allocation.budget_config import BudgetConfig
from dibs.allocation.group_variance import PromptGradients, features, own_advantages
from dibs.allocation.prompt_budget import PromptBudget
from dibs.allocation.shapes import ShapeNoise
from dibs.allocation.target import Target

_SPLITS = 8
"""Times that the completions of a prompt are divided into those that decide and those that are drawn."""


@dataclass(frozen=True)
class MeasuredPrompt:
    """K completions of a prompt: what a trainer would report of them, [K] each, and their gradients."""

    rewards: np.ndarray
    lengths: np.ndarray
    logprobs: np.ndarray
    norms: np.ndarray
    gradients: PromptGradients


@dataclass(frozen=True)
class StepRule:
    """How a step is made.

    ``prompts``: of a batch; times ``budget.num_generations`` they are the completions of a pool's step.
    ``pool``: candidates of a step, 0 for all; None takes a batch. ``group``, ``uniform_share``,
    ``correct``: of a pool (:meth:`.PromptBudget.choose`). ``deciding``: completions of a prompt that
    are known before the step; in mode ``pilot`` they are drawn for it.
    """

    budget: BudgetConfig
    prompts: int
    pool: int | None = None
    group: int | None = None
    uniform_share: float = 0.25
    correct: bool = True
    deciding: int = 0
    length_normalization: Literal["none", "sequence"] = "none"


@dataclass(frozen=True)
class StepNoise:
    """What simulated steps come to, relative to the target's gradient over all measured prompts.

    ``noise``: variance and expected length along the target's gradient, with those that leave out one
    prompt. ``cosine``: of the expected gradient and the target's, [1 + m]. ``rollouts``, ``pilots``,
    ``tokens``, ``trained``: of a step on average, where ``trained`` are prompts with a weight.
    """

    noise: ShapeNoise
    cosine: np.ndarray
    rollouts: float
    pilots: float
    tokens: float
    trained: float


@dataclass
class _Sums:
    """Over steps. ``own``: of each prompt's part, ``w' M w`` and the noise of completions, [m]."""

    mean: np.ndarray
    own: np.ndarray
    noise: np.ndarray
    squares: float = 0.0
    draws: int = 0
    rollouts: int = 0
    pilots: int = 0
    tokens: float = 0.0


def simulated_steps(
    rule: StepRule,
    prompts: Sequence[MeasuredPrompt],
    between: np.ndarray,
    *,
    available: int,
    steps: int,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> StepNoise:
    """Make steps by a rule and see what gradients they have.

    Args:
        prompts: m of them, each with at least ``rule.deciding + 2`` completions.
        between: inner products of their B, [m, F, m, F]; those of a prompt with itself without noise.
        available: prompts of the data set that they stand for.
        steps: 2 or more.

    Raises InputError as :class:`.PromptBudget` does.
    """
    table = _Table(rule, prompts, available, seed)
    m, width = between.shape[:2]
    found = _Sums(np.zeros((m, width)), np.zeros(m), np.zeros(m))
    flat = between.reshape(m * width, m * width)
    for number in range(steps):
        on_step()
        vectors = table.step(number, found)
        found.squares += float(vectors.ravel() @ flat @ vectors.ravel())
        found.mean += vectors
    return _described(found, table.wanted, between, steps)


class _Table:
    """A data set that the measured prompts stand for, and budgets that know what decides.

    Each of its prompts has its own deciding completions, since those of different prompts err apart.
    """

    def __init__(
        self, rule: StepRule, prompts: Sequence[MeasuredPrompt], available: int, seed: int
    ) -> None:
        self.rule, self.prompts = rule, prompts
        target = Target.of(rule.budget)
        self.basis = [features(prompt.gradients.rewards, target) for prompt in prompts]
        self.residues = [
            prompt.gradients.squares
            - np.einsum("kf,fg,kg->k", basis, prompt.gradients.products, basis)
            for prompt, basis in zip(prompts, self.basis, strict=True)
        ]
        self.wanted = np.array(
            [
                own_advantages(prompt.gradients.rewards, target) @ basis / len(basis) / len(prompts)
                for prompt, basis in zip(prompts, self.basis, strict=True)
            ]
        )
        self.rng = np.random.default_rng(seed)
        self.known = rule.deciding if rule.budget.mode == "online" else 0
        self.splits = [self._split(available) for _ in range(_SPLITS if self.known else 1)]

    def _split(self, available: int) -> tuple[PromptBudget, np.ndarray, list[np.ndarray]]:
        """A budget, the measured prompt of each in the data set [N], and its completions to draw."""
        rows = np.resize(self.rng.permutation(len(self.prompts)), available)
        sizes = [len(self.prompts[row].rewards) for row in rows.tolist()]
        orders = [self.rng.permutation(size) for size in sizes]
        budget = PromptBudget(
            self.rule.budget, warns=False, length_normalization=self.rule.length_normalization
        )
        if self.known:
            deciding = [order[: self.known] for order in orders]
            budget.update(_names(np.arange(available)), **self._reported(rows, deciding))
        return budget, rows, [order[self.known :] for order in orders]

    def _reported(
        self, rows: np.ndarray, places: Sequence[np.ndarray]
    ) -> dict[str, list[np.ndarray]]:
        """What a trainer reports of completions of some prompts."""
        pairs = [(self.prompts[row], own) for row, own in zip(rows, places, strict=True)]
        return {
            "rewards": [prompt.rewards[own] for prompt, own in pairs],
            "lengths": [prompt.lengths[own] for prompt, own in pairs],
            "logprobs": [prompt.logprobs[own] for prompt, own in pairs],
            "grad_norms": [prompt.norms[own] for prompt, own in pairs],
        }

    def step(self, number: int, found: _Sums) -> np.ndarray:
        """Make a step and add it to the sums; its ``w`` by measured prompt, [m, F]."""
        rule = self.rule
        budget, rows, drawable = self.splits[number % len(self.splits)]
        chosen = self.rng.permutation(len(rows))
        chosen = chosen[: rule.prompts if rule.pool is None else (rule.pool or len(rows))]
        left = {place: self.rng.permutation(drawable[place]) for place in chosen.tolist()}
        if rule.budget.mode == "pilot":
            pilots = [left[place][: rule.deciding] for place in chosen.tolist()]
            left = {place: own[rule.deciding :] for place, own in left.items()}
            budget.take_pilots(_names(chosen), **self._reported(rows[chosen], pilots))
            found.pilots += sum(map(len, pilots))
            found.tokens += self._tokens(rows[chosen], pilots)
        if rule.pool is not None and rule.budget.rounds is None:
            drawn = budget.choose(
                _names(chosen),
                rule.prompts * rule.budget.num_generations,
                group=rule.group,
                uniform_share=rule.uniform_share,
                correct=rule.correct,
                seed=number,
            )
            chosen, counts = chosen[drawn.positions], drawn.counts
        else:
            counts = budget.allocate(_names(chosen), wanted=rule.prompts)
        total = counts
        own = self._taken(left, chosen, total)
        while rule.budget.rounds is not None and counts.any():
            counts = budget.more(self._reported(rows[chosen], own)["rewards"])
            total = total + counts
            own = self._taken(left, chosen, total)
        return self._gradient(budget, rows[chosen], own, found)

    def _taken(
        self, left: dict[int, np.ndarray], chosen: np.ndarray, counts: np.ndarray
    ) -> list[np.ndarray]:
        """The first completions of each prompt, without replacement as long as there are any."""
        taken = []
        for place, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            while len(left[place]) < count:
                left[place] = np.append(left[place], self.rng.permutation(left[place]))
            taken.append(left[place][:count])
        return taken

    def _gradient(
        self, budget: PromptBudget, rows: np.ndarray, places: list[np.ndarray], found: _Sums
    ) -> np.ndarray:
        """``w`` by measured prompt, [m, F], of completions that were drawn."""
        found.rollouts += sum(map(len, places))
        found.tokens += self._tokens(rows, places)
        vectors = np.zeros((len(self.prompts), self.basis[0].shape[1]))
        rewards = self._reported(rows, places)["rewards"]
        for row, own, a, w in zip(rows, places, *budget.weights(rewards), strict=True):
            found.draws += bool(w.any())
            c = a * w
            vector = c @ self.basis[row][own]
            noise = float(c**2 @ self.residues[row][own])
            found.noise[row] += noise
            found.own[row] += noise + vector @ self.prompts[row].gradients.products @ vector
            vectors[row] += vector
        return vectors

    def _tokens(self, rows: np.ndarray, places: Sequence[np.ndarray]) -> float:
        pairs = zip(rows, places, strict=True)
        return float(sum(self.prompts[row].lengths[own].sum() for row, own in pairs))


def _described(found: _Sums, wanted: np.ndarray, between: np.ndarray, steps: int) -> StepNoise:
    m = len(wanted)
    mean, own, noise = found.mean / steps, found.own / steps, found.noise / steps
    draws = max(found.draws / steps, 1.0)
    again = np.append(1.0, np.full(m, m / max(m - 1, 1)))  # the others are drawn more often

    def without(values: np.ndarray) -> np.ndarray:
        """Sums over all prompts, and over all but one, [1 + m]."""
        return np.append(values.sum(), values.sum() - values) * again

    def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Inner products of sums of vectors, over all prompts and over all but one, [1 + m]."""
        pairs = np.einsum("if,ifjg,jg->ij", one, between, other, optimize=True)
        pairs = (pairs + pairs.T) / 2
        left = pairs.sum() - 2 * pairs.sum(1) + np.diag(pairs)
        return np.append(pairs.sum(), left) * again**2

    length, along, square = product(wanted, wanted), product(mean, wanted), product(mean, mean)
    # Two different steps have independent noise; one with itself has not.
    excess = (found.squares / steps - square[0]) / (steps - 1)
    variance = found.squares / steps + noise.sum() - (square[0] - excess)
    roughly = without(own) - square / draws
    shape = np.divide(roughly, roughly[0], out=np.ones(1 + m), where=roughly[0] != 0)
    square = square - excess * shape
    with np.errstate(divide="ignore", invalid="ignore"):
        return StepNoise(
            ShapeNoise(
                variance * shape, without(noise), np.where(along > 0, along / length, np.nan)
            ),
            along / np.sqrt(np.where((length > 0) & (square > 0), length * square, np.nan)),
            found.rollouts / steps,
            found.pilots / steps,
            found.tokens / steps,
            found.draws / steps,
        )


def _names(rows: np.ndarray) -> list[str]:
    return [f"p{row}" for row in rows]
