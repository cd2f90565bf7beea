"""How good a policy is on held-out prompts: avg@k, pass@k and maj@k of groups of completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dibs.allocation.intervals import clustered_interval
from dibs.allocation.order_k import pass_at_k
from dibs.types import Group


@dataclass(frozen=True)
class Evaluation:
    """Scores on prompts with up to n completions each; a prompt without any verdict is left out.

    A prompt that is too long to be asked counts as one without an accepted completion.

    ``prompts``: how many are scored. ``accuracy``: mean share of accepted completions (avg@k), in [0,
    1], with its 95% interval ``[low, high]``. ``pass_at_k``: chance that one of k completions is
    accepted. ``log_accept_rate``: mean of ``ln p_i``, the value of the objective ``log_likelihood``.
    Here p_i is ``(accepted + 1/2) / (n + 1)``, so that a prompt without an accepted completion counts
    as ``ln 1/(2n + 2)``. ``statuses``: number of completions by status, those without a verdict
    included. Scores are None where no completion has a verdict.
    """

    prompts: int
    accuracy: float | None
    low: float | None
    high: float | None
    pass_at_k: float | None
    log_accept_rate: float | None
    statuses: dict[str, int]

    @property
    def no_answer(self) -> float:
        """Share of completions in which the verifier found no answer."""
        return self.statuses.get("no_answer", 0) / max(sum(self.statuses.values()), 1)

    def metrics(self) -> dict[str, float | None]:
        """The scores under the names they have in metrics.jsonl."""
        return {
            "accuracy": self.accuracy,
            "accuracy_low": self.low,
            "accuracy_high": self.high,
            "pass_at_k": self.pass_at_k,
            "log_accept_rate": self.log_accept_rate,
            "accuracy_no_answer_share": self.no_answer,
        }


def score(groups: Sequence[Group], k: int | None = None, too_long: int = 0) -> Evaluation:
    """Score groups of completions, one for each prompt.

    ``k``: completions of pass@k; None: the size of the largest group. ``too_long``: prompts that have
    too many tokens to be sampled.
    """
    statuses = count_statuses(groups)
    judged = [group for group in groups if group.rollouts]
    if not judged:
        return Evaluation(0, None, None, None, None, None, statuses)
    largest = max(len(group.rollouts) for group in judged)
    k = largest if k is None else k
    rates = np.array([*(group.accepted.mean() for group in judged), *[0.0] * too_long])
    sizes = np.array([*(len(group.rollouts) for group in judged), *[largest] * too_long])
    passes = [pass_at_k(len(g.rollouts), int(g.accepted.sum()), k) for g in judged]
    passes += [0.0] * too_long
    low, high = clustered_interval(rates)
    return Evaluation(
        prompts=len(rates),
        accuracy=float(rates.mean()),
        low=low,
        high=high,
        pass_at_k=float(np.mean(passes)),
        log_accept_rate=float(np.log((rates * sizes + 0.5) / (sizes + 1)).mean()),
        statuses=statuses,
    )


def count_statuses(groups: Sequence[Group]) -> dict[str, int]:
    """Number of completions by status, those without a verdict included."""
    statuses: Counter[str] = Counter()
    for group in groups:
        statuses.update(rollout.status for rollout in group.rollouts)
        statuses.update(group.unreached)
    return dict(statuses)


def majority(group: Group, answer_of: Callable[[str], str | None]) -> float:
    """1 if the answer that most completions give is accepted, else 0 (maj@k).

    Accepted completions vote together, since their answers are equal in value. Every other completion
    votes for its answer as ``answer_of`` reads it, or for its whole text where ``answer_of`` returns
    None. A completion in which the verifier found no answer does not vote. The answer given first wins
    a tie.
    """
    votes: Counter[tuple[bool, str]] = Counter()
    for rollout in group.rollouts:
        if rollout.status != "no_answer":
            text = rollout.completion.text
            votes[rollout.accepted, "" if rollout.accepted else answer_of(text) or text] += 1
    return float(bool(votes) and votes.most_common(1)[0][0][0])
