"""Several accepted forms of one answer, and several rewards of one completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee

from dibs.data.gold_answers import GoldAnswer, columns_of, forms_of
from dibs.rollouts.verify.judges import Judge, judged, unreached
from dibs.rollouts.verify.verifier import Verifier
from dibs.types import Verdict


class AnyForm:
    """A judge that accepts a completion that is right by any accepted form of the answer.

    Its verdict is the one of highest reward. A form that cannot be judged counts only where none can.
    """

    def __init__(self, judge: Judge) -> None:
        self.function = judge

    def __call__(self, answer: str, completion: str) -> Verdict:
        """The verdict by the best form."""
        forms = forms_of(answer)
        if len(forms) == 1:
            return self.function(answer, completion)
        columns = columns_of(answer)
        best: Verdict | None = None
        for form in forms:
            verdict = judged(self.function, GoldAnswer(form, columns=columns), completion)
            better = best is None or (
                verdict.reached and (not best.reached or verdict.reward > best.reward)
            )
            best = verdict if better else best
            if best is not None and best.status == "accepted":
                break
        assert best is not None
        return best


@dataclass(frozen=True)
class Part:
    """One of several rewards: its name in metrics, its weight in the sum, and what gives it."""

    name: str
    weight: float
    verifier: Verifier


class WeightedVerifier:
    """A verifier whose reward is the weighted sum of others' rewards.

    A completion is accepted where the sum is at least ``accept_threshold``. Where one of the others
    reaches no verdict, neither does this one.
    """

    def __init__(self, parts: Sequence[Part], accept_threshold: float) -> None:
        self.parts = parts
        self.accept_threshold = accept_threshold

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """Yield a verdict for each (gold answer, completion text), in order."""
        sources = tee(items, len(self.parts))
        streams = [
            part.verifier.verdicts(source) for part, source in zip(self.parts, sources, strict=True)
        ]
        for each in zip(*streams, strict=True):
            yield self._together(each)

    def close(self) -> None:
        """Stop all workers."""
        for part in self.parts:
            part.verifier.close()

    def _together(self, verdicts: Sequence[Verdict]) -> Verdict:
        for part, verdict in zip(self.parts, verdicts, strict=True):
            if not verdict.reached:
                return unreached(verdict.status, f"{part.name}: {verdict.reason}")
        rewards = {part.name: v.reward for part, v in zip(self.parts, verdicts, strict=True)}
        total = sum(part.weight * rewards[part.name] for part in self.parts)
        said = ", ".join(f"{name} {reward:g}" for name, reward in rewards.items())
        statuses = {verdict.status for verdict in verdicts}
        status = "accepted" if total >= self.accept_threshold else "rejected"
        if status == "rejected" and statuses == {"no_answer"}:
            status = "no_answer"
        return Verdict(float(total), status, said, rewards)
