"""Random changes of right answers: those that change the value are rejected, the others accepted."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from answer_pairs import EQUAL, boxed
from dibs.rollouts.verify.maths import judge_math

COUNT = 200
ANSWERS = [
    *(
        "42",
        "-17",
        "3.75",
        r"\frac{22}{7}",
        r"\frac{3}{8}",
        r"2\sqrt{3}",
        r"5\pi",
        "x^2+3x-4",
        "2^{10}",
    ),
    *(
        "(3,-4)",
        "(1,2,5)",
        r"(0,\frac{1}{2}]",
        "[2,7)",
        r"\frac{\sqrt{5}-1}{2}",
        "1024",
        "0.125",
        "7!",
    ),
    *(
        r"\left(\frac{3}{5},\frac{4}{5}\right)",
        "y=2x+9",
        r"6\text{ cm}",
        "12%",
        "3+4i",
        r"\log_2 7",
    ),
    *(
        r"\binom{30}{7}",
        r"-\frac{8}{3}",
        r"\{2,3,7\}",
        "x<8",
        r"e^{-3}",
        r"\frac{2^{50}+1}{3^{40}}",
        "7:9",
    ),
    *(
        r"\begin{pmatrix} 1 & 4 \\ 6 & 8 \end{pmatrix}",
        "a=4, b=7",
        r"\frac{x+1}{x-3}",
        "10^{12}",
        "8, 13",
    ),
]


def other_digit(draw: random.Random, answer: str) -> str:
    """One digit is replaced by another."""
    at = draw.choice([m.start() for m in re.finditer(r"\d", answer)])
    digit = draw.choice([d for d in "123456789" if d != answer[at]])
    return answer[:at] + digit + answer[at + 1 :]


def more_digits(draw: random.Random, answer: str) -> str:
    """One digit is written twice."""
    at = draw.choice([m.start() for m in re.finditer(r"[1-9]", answer)])
    return answer[:at] + answer[at] * 2 + answer[at + 1 :]


def other_sign(draw: random.Random, answer: str) -> str:
    """One sign is turned, or one is set before a number."""
    signs = [m.start() for m in re.finditer(r"[+-]", answer)]
    if signs:
        at = draw.choice(signs)
        return answer[:at] + ("-" if answer[at] == "+" else "+") + answer[at + 1 :]
    at = draw.choice([m.start() for m in re.finditer(r"(?<![\d.a-z])[1-9]", answer)])
    return answer[:at] + "-" + answer[at:]


def other_power(draw: random.Random, answer: str) -> str:
    """The first number is raised to a power."""
    return re.sub(r"(?<![\d.^{_])([2-9]\d*)(?![\d.])", rf"\1^{draw.choice('23')}", answer, count=1)


def other_bracket(draw: random.Random, answer: str) -> str:
    """Brackets of an interval or tuple are replaced by others."""
    turned = answer.translate(str.maketrans("()[]", "[]()"))
    return turned if answer[:1] in "([" else answer


def other_order(draw: random.Random, answer: str) -> str:
    """The first two parts of a tuple or ratio change places."""
    return re.sub(
        r"^\(([^,()]+),([^,()]+)([,)])", r"(\2,\1\3", re.sub(r"^(\d):(\d)$", r"\2:\1", answer)
    )


def another_answer(draw: random.Random, answer: str) -> str:
    """A second answer or a word is added that changes the first."""
    added = draw.choice(
        [
            r" \text{ or } 99",
            ", 99",
            r"\text{ thousand}",
            r"\text{ is wrong}",
            r" \text{ (or 98)}",
            "+z",
        ]
    )
    return answer + added


CHANGES = (
    other_digit,
    more_digits,
    other_sign,
    other_power,
    other_bracket,
    other_order,
    another_answer,
)
HARMLESS: tuple[Callable[[random.Random, str], str], ...] = (
    lambda draw, a: (
        a.replace(",", draw.choice([", ", r",\,", r",\ ", " , "])) if "{" not in a[:2] else a
    ),
    lambda draw, a: draw.choice([" ", r"\,", r"\quad ", r"\displaystyle ", r"\large "]) + a,
    lambda draw, a: a + draw.choice([" ", ".", r"\,", r"\ ", "\n", r"\quad\checkmark", r"\;."]),
    lambda draw, a: "\\" + draw.choice(["boldsymbol", "mathbf", "boxed", "underline"]) + f"{{{a}}}",
    lambda draw, a: rf"\textcolor{{blue}}{{{a}}}",
    lambda draw, a: draw.choice(["${}$", r"\({}\)", "**{}**", "{{{}}}"]).format(a),
    lambda draw, a: a.replace(r"\frac", draw.choice([r"\dfrac", r"\tfrac"])),
    lambda draw, a: (
        a.replace("(", r"\left(").replace(")", r"\right)")
        if r"\left" not in a and a[0] == "(" and a[-1] == ")"
        else a
    ),
    lambda draw, a: a.replace("-", draw.choice(["\u2212", "\u2013", " - "])),
    lambda draw, a: a.replace(r"\pi", "\u03c0").replace(r"\sqrt{3}", "\u221a3"),
    lambda draw, a: a.replace(r"\frac{1}{2}", draw.choice(["\u00bd", "0.5", "1/2"])),
    lambda draw, a: re.sub(r"^\d+$", lambda m: f"{m[0]}.0", a),
    lambda draw, a: re.sub(
        r"^-?\d+$|^\\frac\{22\}\{7\}$",
        lambda m: draw.choice(["x = ", r"\text{Total} = "]) + m[0],
        a,
    ),
    lambda draw, a: (
        a + draw.choice([r"\text{ cm}", r"\text{ units}"]) if re.fullmatch(r"\d+", a) else a
    ),
    lambda draw, a: a.translate({ord(d): chr(0xFF10 + int(d)) for d in "0123456789"}),
    lambda draw, a: f"The answer is {a}" if draw.random() < 0.5 else f"{{\\bf {a}}}",
)


def mutated(changes, seed: int, count: int) -> list[tuple[str, str]]:
    """Pairs of an answer and a change of it, as many as asked for."""
    draw = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        answer = draw.choice(ANSWERS)
        try:
            changed = draw.choice(changes)(draw, answer)
        except IndexError:  # nothing in the answer to change in this way
            continue
        if changed != answer:
            pairs.append((answer, changed))
    return pairs


def test_changes_of_the_value_are_rejected():
    accepted = [
        pair
        for pair in mutated(CHANGES, 0, COUNT)
        if judge_math(pair[0], boxed(pair[1])).status == "accepted"
    ]
    assert accepted == []


def test_changes_of_the_form_are_accepted():
    rejected = [
        pair
        for pair in mutated(HARMLESS, 0, COUNT)
        if judge_math(pair[0], boxed(pair[1])).status != "accepted"
    ]
    assert len(rejected) <= COUNT * 5 // 100, rejected


def test_changes_of_equal_forms_are_rejected_too():
    """The second form of a pair, with a digit changed, is not the first."""
    draw = random.Random(1)
    pairs = [
        (gold, given)
        for gold, given in EQUAL
        if re.fullmatch(r"[\d\\{}a-z^+.]*\d[\d\\{}a-z^+.]*", given)
    ]
    for gold, given in pairs:
        try:
            changed = more_digits(draw, given)
        except IndexError:
            continue
        assert judge_math(gold, boxed(changed)).status == "rejected", (gold, changed)
