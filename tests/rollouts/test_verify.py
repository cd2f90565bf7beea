"""Judges: final answers found, equal and nearly equal ones; and which verifier is built."""

from __future__ import annotations

import pytest

from answer_pairs import EQUAL, NEAR, boxed
from dibs.config import VerifyConfig
from dibs.data.answers import LONGEST, clean, final_answer, same_text
from dibs.rollouts.verify.judges import judge_arithmetic, judge_choice, judge_exact, judge_numeric
from dibs.rollouts.verify.maths import judge_math
from dibs.rollouts.verify.pool import VerifierPool
from dibs.rollouts.verify.several import AnyForm
from dibs.rollouts.verify.verifiers import InlineVerifier, build_verifier
from dibs.types import InputError, Verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3}, no: \boxed{4}", "4"),
        (r"first \boxed{3}, then I see it is \boxed{4}", "4"),
        (r"\boxed{3} and \boxed{5}", "3, 5"),
        (r"$\boxed{3}$ or $\boxed{5}$, \text{ and } \boxed{7}", "3, 5, 7"),
        ("\\boxed{1}\n\n\\boxed{2}", "1, 2"),
        (r"\boxed{5} \boxed{5}", "5"),
        (r"\boxed{4} and \boxed{unclosed", "4"),
        (r"\boxed{unclosed {", None),
        (r"\boxed{a{b{c}}d} tail }", "a{b{c}}d"),
        (r"\boxed{\boxed{2}}", "2"),
        (r"}}} \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\fbox{7}", "7"),
        (r"\boxed{7\,.}", "7"),
        (r"\boxed{3!}", "3!"),
        (r"$\boxed 12$", "12"),
        (r"\boxed{ $7$. }", "7"),
        (r"\boxed{}", None),
        ("1/2", None),
        ("", None),
        (r"\boxed{6} | \boxed{5}", "6, 5"),
        (r"\boxed{6}\lor\boxed{5}", "6, 5"),
        (r"\boxed{6}; alternatively \boxed{5}", "6, 5"),
        ("1) \\boxed{1}\n2) \\boxed{2}", "1, 2"),
        (r"\boxed{1}" + "x" * LONGEST, None),
        ("x" * 10 * LONGEST + r"\boxed{1}", "1"),
    ],
)
def test_the_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is $\frac12$.", r"\frac12"),
        ("the final answer is: 12", "12"),
        ("Answer: 3\nbecause", "3"),
        ("7 * 6 = 42\n#### 42", "42"),
        ("thus 3 + 4 = 7 apples", "7"),
        ("1,234.5 dollars", "1,234.5"),
        (r"the answer is 3, so \boxed{4}", "4"),
        ("no idea", None),
    ],
)
def test_the_final_answer_anywhere(text, answer):
    assert final_answer(text, anywhere=True) == answer


def test_text_is_compared_without_spacing_fonts_and_dollars():
    assert same_text(r"$\dfrac{1}{2}$", r"\frac{1}{ 2 }.")
    assert same_text(r"\text{Evelyn}", "evelyn")
    assert same_text(r"\left( 3, 4\right)", "(3,4)")
    assert not same_text("1 2", "12")
    assert not same_text("x", "X")
    assert clean(r"\(\boxed{5}.\)") == "5"


@pytest.mark.parametrize(("gold", "given"), EQUAL)
def test_answers_equal_in_value_are_accepted(gold, given):
    assert judge_math(gold, boxed(given)).status == "accepted"


@pytest.mark.parametrize(("gold", "given"), NEAR)
def test_near_misses_are_rejected(gold, given):
    assert judge_math(gold, boxed(given)).status == "rejected"


def test_there_are_enough_pairs():
    assert len(EQUAL) >= 60
    assert len(NEAR) >= 60


@pytest.mark.parametrize(
    ("judge", "gold", "given", "status"),
    [
        (judge_exact, r"\frac{1}{2}", r"\frac{1} {2}", "accepted"),
        (judge_exact, r"\frac{1}{2}", "0.5", "rejected"),
        (judge_exact, "27.0", "27", "accepted"),
        (judge_exact, "0.50", ".5", "accepted"),
        (judge_exact, "1", "NaN", "rejected"),
        (judge_exact, "sNaN", "1", "rejected"),
        (judge_exact, "1e999999999", "1", "rejected"),
        (judge_numeric, "0.5", r"\frac{1}{2}", "accepted"),
        (judge_numeric, "1000000", "1,000,000.5", "accepted"),
        (judge_numeric, "1000000", "1,000,002", "rejected"),
        (judge_numeric, r"50\%", "0.5", "accepted"),
        (judge_numeric, "5", r"\$5.00", "accepted"),
        (judge_numeric, "5", "five", "accepted"),
        (judge_numeric, "0", "1e-7", "accepted"),
        (judge_numeric, "1", "1/0", "rejected"),
        (judge_numeric, "5.5", r"5\frac{1}{2}", "accepted"),
        (judge_numeric, "1.5", r"1\frac12", "accepted"),
        (judge_numeric, "1.5", "1 1/2", "accepted"),
        (judge_numeric, "-1.5", r"-1\frac{1}{2}", "accepted"),
        (judge_numeric, "11/2", r"1\frac{1}{2}", "rejected"),
        (judge_numeric, "34", "3 4", "rejected"),
        (judge_numeric, "30", "3_0", "rejected"),
        (judge_exact, "30", "3_0", "rejected"),
        (judge_numeric, "7", "1e5000000", "rejected"),
        (judge_numeric, "7", "1e-99999999", "rejected"),
        (judge_numeric, "0.002", "2e-3", "accepted"),
        (judge_numeric, "7", "1" * 6000, "rejected"),
        (judge_choice, "A", "A. or B", "rejected"),
        (judge_choice, "A", "(A: no, it is B)", "rejected"),
        (judge_choice, "B", "B", "accepted"),
        (judge_choice, "B", r"\text{(B)}", "accepted"),
        (judge_choice, "(B)", "b. because it is", "accepted"),
        (judge_choice, "B", "C", "rejected"),
        (judge_choice, "B", "A, B, C, D", "rejected"),
        (judge_choice, "B", "Both", "rejected"),
    ],
)
def test_judges_without_algebra(judge, gold, given, status):
    assert judge(gold, boxed(given)).status == status
    assert judge(gold, "nothing boxed").status == "no_answer"


def test_gold_answers_that_cannot_be_are_errors_not_rejections():
    verifier = InlineVerifier(judge_numeric)
    bad, good = verifier.verdicts([("many", boxed("3")), ("3", boxed("3"))])
    assert (bad.status, good.status) == ("error", "accepted")
    assert "the gold answer 'many' is no number" in bad.reason
    assert bad.reward != bad.reward  # NaN, not 0
    assert next(InlineVerifier(judge_choice).verdicts([("Both", boxed("B"))])).status == "error"


def test_the_verifier_follows_the_data_and_unknown_ones_are_named():
    auto = VerifyConfig()
    embedded = build_verifier(auto, "arithmetic-hard")
    assert isinstance(embedded, InlineVerifier)
    assert isinstance(embedded.judge, AnyForm)
    assert embedded.judge.function is judge_arithmetic
    assert isinstance(build_verifier(auto, "some.jsonl"), VerifierPool)
    for name, message in (
        ("magic", "unknown verifier 'magic'; known: math, exact, .* module:function"),
        ("nowhere:f", "cannot be imported"),
        ("math:pi", "is not a function"),
    ):
        with pytest.raises(InputError, match=message):
            build_verifier(VerifyConfig(verifier=name), "x")


def test_own_functions_may_return_verdicts():
    from dibs.rollouts.verify.verifiers import OwnJudge

    judge = OwnJudge(lambda a, c: Verdict(0.3, "partial"), 1.0)
    assert judge("", "") == Verdict(0.3, "partial")
