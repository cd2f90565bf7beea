"""The judge of questions from reasoning-gym: their data set's own scoring function, a real reward."""

from __future__ import annotations

import re

# The server that forks the workers imports this module, so that none of them loads the package while a
# completion waits.
import reasoning_gym  # noqa: F401

from dibs.data.answers import LONGEST, final_answer
from dibs.data.reasoning_gym import GymAnswer, score_of
from dibs.rollouts.verify.judges import NO_ANSWER, scored, unreached
from dibs.types import Verdict

_TAGGED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.IGNORECASE)


def given_answer(completion: str, anywhere: bool) -> str | None:
    r"""The last text between ``<answer>`` and ``</answer>``, or else what is boxed.

    ``anywhere``: or else what follows the last "answer is" or "####", or the last number.
    """
    tagged = _TAGGED.findall(completion[-LONGEST:])
    return tagged[-1] if tagged else final_answer(completion, anywhere)


def judge_gym(
    answer: str, completion: str, anywhere: bool = False, accept_threshold: float = 1.0
) -> Verdict:
    """The reward is the score; a score of at least ``accept_threshold`` is accepted."""
    if not isinstance(answer, GymAnswer):
        return unreached("error", "verifier reasoning-gym judges questions of reasoning-gym only")
    given = given_answer(completion, anywhere)
    if not given:
        return NO_ANSWER
    return scored(score_of(answer, given), accept_threshold, "score")
