"""The stages of the verifier of mathematics: finding, undressing, reading, comparing, leftovers."""

from __future__ import annotations

import json
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest

from answer_forms import BOXES, DIFFERENT, SAME, UNBOXED
from answer_pairs import boxed
from dibs.data.answers import same_text
from dibs.data.stated_answers import stated_answers
from dibs.rollouts.verify.characters import plain_characters
from dibs.rollouts.verify.equality import order, proportional, same_expression
from dibs.rollouts.verify.expressions import TooLargeError, UndefinedError, exact
from dibs.rollouts.verify.final_answer import find_answer
from dibs.rollouts.verify.maths import judge_math
from dibs.rollouts.verify.numerals import with_digits
from dibs.rollouts.verify.parse_expression import parse_expression
from dibs.rollouts.verify.read import read
from dibs.rollouts.verify.tokens import UnreadableError, tokens_of
from dibs.rollouts.verify.units import measure_of
from dibs.rollouts.verify.values import Listing, Quantity, Words

CASES = [
    json.loads(line)
    for line in Path(__file__)
    .parents[1]
    .joinpath("answer_kinds.jsonl")
    .read_text("utf8")
    .splitlines()
]
"""Answers by kind, as ``benchmarks/verifier.py --cases`` reads them."""


def tree(text):
    return parse_expression(tokens_of(text))


@pytest.mark.parametrize(("gold", "given"), SAME)
def test_the_same_answer_in_another_form_is_accepted(gold, given):
    verdict = judge_math(gold, boxed(given))
    assert verdict.status == "accepted", verdict.reason


@pytest.mark.parametrize(("gold", "given"), DIFFERENT)
def test_what_changes_an_answer_is_not_overlooked_on_either_side(gold, given):
    assert judge_math(gold, boxed(given)).status == "rejected"
    assert judge_math(given, boxed(gold)).status == "rejected"


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_forms_by_kind(kind):
    """Only right answers of the kind "not read" are judged wrongly; these are rejected."""
    for case in CASES:
        if case["kind"] == kind:
            anywhere = case.get("answer_from") == "anywhere"
            verdict = judge_math(case["answer"], case["completion"], anywhere)
            right = case["expected"] and kind != "not read"
            assert (verdict.status == "accepted") == right, (case, verdict.reason)


@pytest.mark.parametrize(("text", "right"), BOXES)
def test_several_boxes_are_an_answer_only_where_earlier_ones_are_taken_back(text, right):
    assert (judge_math("5", text).status == "accepted") == right


def test_digits_in_a_base_are_the_answer_to_a_gold_one_with_this_base_only():
    assert judge_math("203_5", boxed("203")).status == "accepted"
    assert judge_math("203", boxed("203_5")).status == "rejected"


def test_a_gold_equation_is_not_its_right_side():
    assert judge_math("3x+2y=12", boxed("12")).status == "rejected"
    assert judge_math("12", boxed("a+b=12")).status == "accepted"


@pytest.mark.parametrize(("gold", "text", "right"), UNBOXED)
def test_answers_without_a_box(gold, text, right):
    assert (judge_math(gold, text, anywhere=True).status == "accepted") == right


@pytest.mark.parametrize(
    ("gold", "text", "reason"),
    [
        ("5", "nothing", "find: there is no final answer"),
        ("5", r"\boxed{4} or maybe \boxed{5}", "find: several answers: 4 and 5"),
        ("5", r"\boxed{5} is wrong.", "find: the text denies its answer"),
        ("5", r"\boxed{5} million", "find: the box is a part of a longer expression"),
        ("5", r"\boxed{5} or 6", "find: several answers: 5 and 6"),
        ("5", r"\boxed{ 5 }", "text: the same text"),
        ("B", r"\boxed{\text{(B) } 7}", "choice: B"),
        ("5", r"\boxed{5 \text{ is wrong}}", "read: the answer was read as words: 5 is wrong"),
        (r"\frac{1}{", r"\boxed{5}", "read: the gold answer was read as words"),
        ("5", r"\boxed{x = 5}", "compare: statement of the same value"),
        ("5", r"\boxed{6}", "compare: quantity of another value"),
        ("5", r"\boxed{9^{9^{9^9}}}", "compare: a power has too many digits"),
    ],
)
def test_the_reason_names_the_stage_that_decided(gold, text, reason):
    assert judge_math(gold, text).reason.startswith(reason)


def test_find_answer_gives_the_answer_and_those_that_contradict_it():
    assert find_answer(r"\boxed{4} or perhaps \boxed{5}").several == ("4", "5")
    assert find_answer(r"<think>\boxed{4} or \boxed{6}</think> \boxed{5}").several == ()
    assert find_answer("The answer is 5 because 2 + 3 = 5", anywhere=True).readings[0] == "5"
    assert find_answer("no number").readings == ()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("½", r"\frac{1}{2}"),
        ("x²", "x^{2}"),
        ("√12", r" \sqrt {12}"),
        ("−5", "-5"),
        ("１２", "12"),
        ("٥", "5"),
        ("a\u200bb", "ab"),
        ("plain", "plain"),
    ],
)
def test_characters_of_any_script(text, plain):
    assert plain_characters(text) == plain


def test_dress_is_no_token():
    dressed = r"\displaystyle\boldsymbol{\textcolor{red}{\left(5\right)}}\,\checkmark\quad"
    assert [t.text for t in tokens_of(dressed) if t.text not in "{}"] == ["(", "5", ")"]
    for text in ("{" * 1000, "}", r"\text{a"):
        with pytest.raises(UnreadableError):
            tokens_of(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac12", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        (r"-2\frac{1}{3}", Fraction(-7, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.4545...", Fraction(5, 11)),
        (r"2^{10}-4!", Fraction(1000)),
        (r"\sqrt{\frac{9}{16}}", Fraction(3, 4)),
        (r"\binom{5}{2}\cdot 3", Fraction(30)),
        (r"\lfloor -2.5 \rfloor", Fraction(-3)),
        ("1.2e-3", Fraction(12, 10**4)),
        (r"\sqrt{2}", None),
        ("x", None),
    ],
)
def test_exact_values(text, value):
    assert exact(tree(text)) == value


def test_values_that_cannot_be_are_errors():
    with pytest.raises(TooLargeError):
        exact(tree("9^{9^9}"))
    with pytest.raises(TooLargeError):
        exact(tree("100000!"))
    with pytest.raises(UndefinedError):
        exact(tree(r"\frac{5}{0}"))
    for text in (
        "5 6",
        "5 +",
        "(5",
        "5)",
        "x 5",
        "1..2",
        r"\unknown{5}",
        "(" * 500 + "1" + ")" * 500,
    ):
        with pytest.raises(UnreadableError):
            tree(text)


def test_numbers_are_told_apart_relative_to_their_size():
    assert same_expression(tree(r"\sqrt{5+2\sqrt6}"), tree(r"\sqrt2+\sqrt3"))
    assert same_expression(tree(r"\sin\pi"), tree("0"))
    assert not same_expression(tree("e^{-1000}"), tree("0"))
    assert not same_expression(tree(r"\sqrt2+10^{-90}"), tree(r"\sqrt2"))
    assert not same_expression(tree(r"x+10^{-90}"), tree("x"))
    assert not same_expression(tree("|x|"), tree("x"))
    assert order(tree(r"\sqrt2"), tree("1.42")) == -1
    assert order(tree("x"), tree("1")) is None
    assert proportional(tree("2x-4y"), tree("2y-x"))
    assert not proportional(tree("2x-4y"), tree("2x-3y"))


def test_words_behind_a_number_are_units_or_nothing_is_read():
    measure = measure_of(tokens_of(r"\text{ square miles per hour}"))
    assert measure is not None
    assert measure.unit == (("h", -1), ("mi", 2))
    millions = measure_of(tokens_of(r"\text{million dollars}"))
    assert millions is not None
    assert millions.factor == 10**6
    for words in ("is wrong", "red", "dozen red", "square", "times 2"):
        assert measure_of(tokens_of(rf"\text{{{words}}}")) is None


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        (r"\text{twenty-five}", "25"),
        (r"\text{one hundred and five}", "105"),
        (r"\text{two thousand five hundred twelve}", "2512"),
        (r"\text{three million}", "3000000"),
        (r"\text{a dozen}", "12"),
        (r"\text{two thirds}", "2/3"),
        (r"\text{two and a half}", "5/2"),
        (r"\text{twelve apples}", "12apples"),
        (r"\text{five two}", "fivetwo"),
        (r"\text{one thousand two million}", "onethousandtwomillion"),
        (r"\text{and five}", "andfive"),
        (r"\text{a cat}", "acat"),
        ("", ""),
    ],
)
def test_numbers_in_words(text, digits):
    assert "".join(token.text for token in with_digits(tokens_of(text))) == digits


def test_digits_with_commas_are_read_both_ways():
    one, other = read("1,234")
    assert isinstance(one, Quantity)
    assert isinstance(other, Listing)
    assert isinstance(read("5 is wrong")[0], Words)


PIECES = [
    "5", "5 ", "(", ")", "{", "}", "x+", "-", "1,", "5 is ", r"\frac", r"\frac{1}{2}", r"\text{a ",
    r"\left(", r"\sqrt{", "^", "_1", r"\boxed{5}", r"\boxed{", "answer is 5 ", "or ", "\u00bd",
    "\u221a2", "a ", "ab", "x^2+", "$", "\\", "\n", ",", "1 000 ", "|", "\\\\", "5!", "**", "A) ",
    r"\begin{pmatrix}", "[", "=", "...", "0.33", "<", r"\pm ", "5%", " cm", "\u00b2",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_time_is_linear_in_the_length_of_a_text(piece):
    """Ten times the characters take about ten times the time, and never more than seconds."""
    for size in (10**4, 10**5, 10**6):
        text = piece * (size // len(piece))
        started = time.process_time()
        judge_math("5", text, anywhere=True)
        judge_math("5", text + r" \boxed{5}", anywhere=True)
        judge_math("5", rf"\boxed{{{text}}}")
        assert time.process_time() - started < 20


def test_no_text_is_an_error():
    """Random strings of the pieces of answers are judged, whatever they are."""
    draw = random.Random(0)
    forms = " ".join(case["answer"] + case["completion"] for case in CASES)
    pieces = [*re.findall(r"\\[A-Za-z]+|\w+|.", forms), *PIECES, "53E5612", "9^{9^9}", "123_4"]
    for _ in range(1000):
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 14)))
        gold = text[: draw.randint(1, len(text))]
        assert judge_math(gold, text, anywhere=True).status in ("accepted", "rejected", "no_answer")
        assert judge_math(gold, boxed(text)).status in ("accepted", "rejected", "no_answer")


def test_numbers_too_long_to_write_out_are_read_or_words():
    for gold, text in (("5", "in 53E5612 in"), ("123_4", "53E5612"), ("5" * 3000 + "_6", "5")):
        assert judge_math(gold, boxed(text)).status == "rejected"


@pytest.mark.parametrize(
    "text",
    [
        r"\max 6",
        r"\gcd 2x",
        r"x < \pm 2",
        r"\infty y = x",
        r"\pm 6 \pmod 7",
        "5 = 590!!!",
        "5 = 9^{9^{9^9}}",
        "1/0:30 PM",
    ],
)
def test_what_has_no_value_is_rejected(text):
    for gold in ("5", "y = 2x", "x < 2", r"5 \pmod 7"):
        assert judge_math(gold, boxed(text)).status == "rejected"
        assert judge_math(text, boxed(gold)).status == "rejected"


@pytest.mark.parametrize(
    "text",
    [
        r"\sum_{i=1}^{2000}\sum_{j=1}^{2000}\sum_{k=1}^{2000} ijk",
        r"\int_0^1\int_0^1\int_0^1 x^{y^z}\,dx\,dy\,dz",
        r"\prod_{k=1}^{1999} k^k",
        r"\binom{5000}{2500}^{40}",
        r"\sin(10^{10000})",
        "5000!^{5000!}",
        "e^{e^{e^e}}",
        "0.(" + "3" * 5000 + ")",
        "(x+y+z)^{1000}",
        r"\frac{1}{" * 1500 + "2" + "}" * 1500,
        ":".join("1" * 5000),
    ],
)
def test_what_takes_long_to_compute_is_rejected_at_once(text):
    for gold, given in (("x+5", text), (text, "x+5")):
        started = time.process_time()
        assert judge_math(gold, boxed(given)).status == "rejected"
        assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "lead", ["answer is", "answer", "answer **", "answer:", "#### ", "5,", "5"]
)
@pytest.mark.parametrize("gap", [" ", "\n", " \n", "\t", "$ ", "**", ",", ". "])
def test_a_long_gap_behind_an_answer_takes_linear_time(lead, gap):
    """Where several parts of a pattern match the same gap, 10^4 spaces take hours."""
    for size in (10**4, 10**5, 10**6):
        started = time.process_time()
        assert not same_text(lead + gap * (size // len(gap)), "6")
        stated_answers(lead + gap * (size // len(gap)) + "\n")
        judge_math("5", lead + gap * (size // len(gap)) + "\n", anywhere=True)
        assert time.process_time() - started < 20


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_stages_take_linear_time_without_the_limit_on_a_completion(piece):
    spent = []
    for size in (10**4, 10**5):
        text = piece * (size // len(piece))
        started = time.process_time()
        read.__wrapped__(text)
        spent.append(time.process_time() - started)
    assert spent[1] < 30 * spent[0] + 1
