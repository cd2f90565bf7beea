r"""The final answer of a completion: one, none, or several that contradict each other.

A completion that boxes several answers, and neither lists them as one answer nor takes the earlier ones
back, has not answered. Everything before the end of a ``<think>`` block is a draft.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dibs.data.answers import JOINT, LONGEST, boxes_in, clean, final_answer
from dibs.data.stated_answers import stated_answers
from dibs.rollouts.verify.around_box import is_denied, numbers_beside, refusal

_THOUGHT = "</think>"
_HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|probably|alternative|alternatively|candidates?|options?|guess|"
    r"could|might|may|choose|pick|versus|vs|both|another|also)\b|[/|?]",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"\b(?:no|not|wait|wrong|incorrect|instead|actually|fails?|failed|mistakes?|error|correct(?:ed|ion)?|"
    r"however|recheck\w*|reconsider\w*|rather|oops|sorry|scratch|see|"
    r"hmm|let me|re-?comput\w*|recalculat\w*|redo\w*|check\w*|but)\b",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(
    r"\b(?:so|thus|hence|therefore|then|finally|final|conclude|conclusion|it follows|in total|"
    r"together|result|substitut\w*|gives?|yields?|now|next|because|since)\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"\b(?:answer|option|case|choice)\s*(?:\d|[A-Za-z]\b)\s*[:.)=]", re.IGNORECASE
)
_NEAR = 60
"""Characters before the first of two boxes that may call it a guess."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answers of a completion.

    ``readings`` are the texts that the answer may be, the likeliest first; empty without one.
    ``several``: different texts that are given as the answer, of which all have to be right.
    ``refused``: why the text in the last box is not given as the answer; empty where it is.
    """

    readings: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    refused: str = ""

    def is_right(self, is_gold: Callable[[str], bool]) -> bool:
        """Whether the answer is right, by a function that judges one text."""
        if self.refused:
            return False
        return all(map(is_gold, self.several)) if self.several else any(map(is_gold, self.readings))


def find_answer(text: str, anywhere: bool = False) -> Found:
    r"""The final answer in the end of a text, in linear time.

    ``anywhere``: without a box, the text after the last "answer is" or "####", or else the last number.
    """
    text = text[-LONGEST:]
    _, thought, after = text.rpartition(_THOUGHT)
    boxes = boxes_in(after)
    if thought and not boxes:
        boxes = boxes_in(text)
    else:
        text = after
    if boxes:
        first, several = _contradicting(text, boxes)
        answer = final_answer(text)
        beside = numbers_beside(text, boxes[first][0], boxes[-1][1])
        if beside and answer is not None:
            several = several or (answer, *beside)
        refused = refusal(text, boxes[first][0], boxes[-1][1])
        return Found((answer,) if answer is not None else (), several, refused)
    answer = final_answer(text)
    if answer is not None or not anywhere:
        return Found((answer,) if answer is not None else ())
    readings = (clean(reading) for reading in stated_answers(text))
    return Found(tuple(dict.fromkeys(filter(None, readings))))


def _contradicting(text: str, boxes: list[tuple[int, int, str]]) -> tuple[int, tuple[str, ...]]:
    """The first box of the answer, and the different answers that are not taken back."""
    last = len(boxes) - 1
    while last > 0 and JOINT.fullmatch(text, boxes[last - 1][1], boxes[last][0]):
        if not _HEDGE.search(text, boxes[last - 1][1], boxes[last][0]):
            last -= 1
            continue
        return last, _if_different(boxes, last)
    first = boxes[last]
    if last == 0:
        return last, ()
    earlier = boxes[last - 1]
    if clean(earlier[2]) == clean(boxes[-1][2]) or is_denied(text, *earlier[:2]):
        return last, ()
    between = text[earlier[1] : first[0]]
    lead = text[max(0, earlier[0] - _NEAR, boxes[last - 2][1] if last > 1 else 0) : earlier[0]]
    lead = re.split(r"[.!\n]", lead)[-1]
    numbered = _NUMBERED.search(lead) and _NUMBERED.search(between)
    hedges = [match.end() for match in _HEDGE.finditer(between)]
    rest = between[hedges[-1] :] if hedges else between
    if not numbered and _RETRACTED.search(rest):
        return last, ()
    if numbered or hedges or _HEDGE.search(lead) or not _CONCLUDED.search(rest):
        return last, _if_different(boxes, last)
    return last, ()


def _if_different(boxes: list[tuple[int, int, str]], last: int) -> tuple[str, ...]:
    contents = list(dict.fromkeys(clean(content) for *_, content in boxes[last - 1 :]))
    return tuple(contents) if len(contents) > 1 else ()
