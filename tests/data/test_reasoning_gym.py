"""Questions from the package reasoning-gym, with the real package."""

from __future__ import annotations

import json
import pickle
from functools import partial

import pytest

from dibs.config import DataConfig, VerifyConfig
from dibs.config.load import load_config
from dibs.data.prompts import build_prompts, read_questions
from dibs.data.questions import Question
from dibs.data.reasoning_gym import Dataset, GymAnswer, gym_questions
from dibs.model.pretrained import load_tokenizer
from dibs.rollouts.verify.verifiers import build_verifier
from dibs.runs.console import NoView
from dibs.runs.describe_data import describe_data
from dibs.runs.evaluation import run_evaluation
from dibs.types import InputError
from tiny_runs import drawn, whole_and_resumed

gym = pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is not installed")
from dibs.rollouts.verify.gym import given_answer, judge_gym  # noqa: E402  (imports that package)

SUMS = "reasoning-gym:chain_sum"
SMALL = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


def origin(question: Question) -> tuple[Dataset, int]:
    """The data set of a question, and its number there."""
    assert isinstance(question.answer, GymAnswer)
    return question.answer.dataset, question.answer.number


def asked(source: str = SUMS, seed: int = 0, **options) -> tuple[list[str], list[str]]:
    """Texts of the training and of the held-out questions."""
    config = DataConfig(train=source, **{"size": 40, "eval_size": 20, **options})
    questions = read_questions(config, seed)
    return [q.text for q in questions.train], [q.text for q in questions.eval or ()]


def test_questions_are_those_of_the_package():
    (one,) = gym_questions(SUMS, SMALL, 1, (0, 0))
    dataset, number = origin(one)
    made = gym.create_dataset(
        "chain_sum", seed=dataset.seed, size=dataset.size, **SMALL["chain_sum"]
    )
    entry = made[number]
    assert (entry["question"], entry["answer"]) == (one.text, one.answer)
    left, sign, right = one.text.split(": ")[1].removesuffix(" =").split()
    assert int(one.answer) == int(left) + int(right) * (1 if sign == "+" else -1)


def test_held_out_questions_are_distinct_and_the_same_whatever_the_size():
    train, held_out = asked(options=SMALL)
    assert len(set(train)) == 40
    assert len(set(held_out)) == 20
    assert not set(train) & set(held_out)
    assert asked(options=SMALL, size=100)[1] == held_out
    assert asked(options=SMALL) == (train, held_out)
    other = asked(options=SMALL, seed=1)
    assert len(set(other[0]) & set(train)) < 40


def test_names_take_turns_in_equal_shares():
    train, _ = asked("reasoning-gym:chain_sum,leg_counting,products", size=8, eval_size=3)
    kinds = [
        "sum" if "arithmetic problem" in t else "legs" if "legs" in t else "product" for t in train
    ]
    assert kinds == ["sum", "legs", "product"] * 2 + ["sum", "legs"]


def test_a_set_may_be_evaluated_on_another():
    config = DataConfig(train=SUMS, eval="reasoning-gym:products", size=4, eval_size=3)
    questions = read_questions(config, 0)
    assert questions.eval is not None
    assert {origin(q)[0].name for q in questions.train} == {"chain_sum"}
    assert {origin(q)[0].name for q in questions.eval} == {"products"}


def test_prompts_are_those_of_any_source(byte_model):
    config = DataConfig(train=SUMS, options=SMALL, size=30, eval_size=5, template="Q{prompt}")
    tokenizer = load_tokenizer(str(byte_model), {})
    prompts = build_prompts(read_questions(config, 0), config, tokenizer, 0)
    assert (len(prompts.train), len(prompts.eval)) == (30, 5)
    assert prompts.train[0].text.startswith("<|im_start|>user\nQState the final answer")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("reasoning-gym:", {}, "write reasoning-gym:NAME"),
        ("reasoning-gym:chain_sum,chain_sum", {}, "each name once"),
        ("reasoning-gym:chain_sun", {}, "has no data set 'chain_sun'; nearest is chain_sum"),
        (SUMS, {"chain_sum": {"max_term": 2}}, "unknown option max_term; it has .*max_terms"),
        (SUMS, {"chain_sum": {"seed": 2}}, "seed of the configuration decides it"),
        (SUMS, {"chain_sum": {"max_terms": 1}}, "data.options.chain_sum: AssertionError"),
        (SUMS, {"chain_sum": [1]}, "must hold keys and values"),
        (SUMS, {"products": {}}, "options has 'products'.* names chain_sum"),
        (SUMS, {**SMALL, "size": 3}, "options has 'size'"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(source, options, message):
    with pytest.raises(InputError, match=message) as error:
        asked(source, options=options)
    assert "\n" not in str(error.value)


def test_more_questions_than_there_are():
    with pytest.raises(InputError, match="gave 180 distinct questions in 3,000 tries, and 500 are"):
        asked(options=SMALL, size=500)


def test_an_answer_survives_the_way_to_a_worker():
    (one,) = gym_questions(SUMS, SMALL, 1, (0, 0))
    again = pickle.loads(pickle.dumps(one.answer))
    assert again == one.answer
    assert origin(Question(one.text, again)) == origin(one)


@pytest.mark.parametrize(
    ("completion", "anywhere", "given"),
    [
        ("it is <answer> 12 </answer>, no: <answer>7</answer>", False, "7"),
        (r"so \boxed{7}", False, "7"),
        ("The answer is 7.", False, None),
        ("The answer is 7.", True, "7"),
        ("", True, None),
    ],
)
def test_where_the_answer_is_found(completion, anywhere, given):
    assert given_answer(completion, anywhere) == given


def test_the_reward_is_the_score_of_the_package():
    (one,) = gym_questions(SUMS, SMALL, 1, (0, 0))
    right = judge_gym(one.answer, f"<answer>{one.answer}</answer>")
    assert (right.reward, right.status) == (1.0, "accepted")
    # The package's own rule: the share of the given text that the answer makes up.
    wordy = judge_gym(one.answer, f"<answer>{one.answer} apples</answer>")
    expected = len(one.answer) / len(f"{one.answer} apples")
    assert (wordy.reward, wordy.status) == (pytest.approx(expected), "rejected")
    lenient = judge_gym(one.answer, f"<answer>{one.answer} apples</answer>", accept_threshold=0.1)
    assert (lenient.reward, lenient.status) == (wordy.reward, "accepted")
    assert judge_gym(one.answer, "<answer>none</answer>").reward == 0.0
    assert judge_gym(one.answer, "no answer here").status == "no_answer"
    assert judge_gym("7", r"\boxed{7}").status == "error"


def test_a_puzzle_that_states_no_answer_is_scored_all_the_same():
    (one,) = gym_questions("reasoning-gym:graph_color", {}, 1, (0, 0))
    dataset, number = origin(one)
    assert one.answer == f"entry {number}"
    entry = gym.create_dataset("graph_color", seed=dataset.seed, size=dataset.size)[number]
    coloring = json.dumps(entry["metadata"]["possible_answer"])
    assert judge_gym(one.answer, f"<answer>{coloring}</answer>").status == "accepted"
    assert judge_gym(one.answer, "<answer>{}</answer>").status == "rejected"


def test_an_entry_that_is_not_made_again_is_an_error():
    (one,) = gym_questions(SUMS, SMALL, 1, (0, 0))
    dataset, number = origin(one)
    other = GymAnswer("123", dataset, number)
    with pytest.raises(ValueError, match="does not make the same entry twice"):
        judge_gym(other, "<answer>123</answer>")


def test_the_verifier_of_the_data_judges_in_workers():
    questions = gym_questions(SUMS, SMALL, 3, (0, 0))
    verifier = build_verifier(VerifyConfig(workers=1, answer_from="anywhere"), SUMS)
    items = [(q.answer, f"The answer is {q.answer}.") for q in questions]
    try:
        verdicts = list(verifier.verdicts([*items, (questions[0].answer, "The answer is 77.")]))
    finally:
        verifier.close()
    assert [v.status for v in verdicts] == ["accepted"] * 3 + ["rejected"]


def words(byte_model, out, **more: str) -> dict[str, str]:
    return {
        "policy.model": str(byte_model),
        "policy.device": "cpu",
        "data.train": SUMS,
        "data.options": "{chain_sum: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}",
        "data.size": "20",
        "data.eval_size": "4",
        "verify.workers": "1",
        "verify.answer_from": "anywhere",
        "sampling.max_completion_length": "6",
        "algorithm.name": "grpo",
        "allocate.allocator": "uniform",
        "allocate.num_generations": "4",
        "estimate.mode": "none",
        "train.steps": "2",
        "train.prompts_per_step": "4",
        "checkpoint.interval": "1",
        "output_dir": str(out),
        **more,
    }


def test_a_run_and_its_resumption_see_the_same_prompts(byte_model, tmp_path):
    whole, parts = whole_and_resumed(partial(words, byte_model), tmp_path)
    assert drawn(whole, "prompt_id") == drawn(parts, "prompt_id")


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, True),
        ({"data.template": "boxed"}, False),
        ({"data.template": "{prompt} Write it between <answer> and </answer>."}, False),
        ({"verify.answer_from": "anywhere"}, False),
    ],
)
def test_a_template_that_asks_for_no_answer_in_a_mark_is_pointed_out(
    byte_model, tmp_path, changes, warned
):
    given = words(byte_model, tmp_path, **{"verify.answer_from": "boxed", **changes})
    notes = describe_data(load_config(None, given))["notes"]
    found = [note for note in notes if "and the verifier reasoning-gym takes no other" in note]
    assert len(found) == warned


def test_a_model_is_evaluated_on_it(byte_model, tmp_path):
    config = load_config(None, words(byte_model, tmp_path))
    result = run_evaluation(config, [SUMS], 1, 1, None, NoView())
    assert result["benchmarks"][0]["prompts"] == 4
    with pytest.raises(InputError, match="a command of its own"):
        run_evaluation(config, [SUMS, "math-500"], 1, 1, None, NoView())


def leveled(levels: object, source: str = SUMS, **options) -> list[list[str]]:
    """Texts of the training questions of each level."""
    data = {"train": source, "size": 40, "eval_size": 12, "grow": {"levels": levels}, **options}
    questions = read_questions(DataConfig.model_validate(data), 0)
    assert questions.eval is not None
    every = [*questions.train, *questions.eval]
    assert len({q.text for q in every}) == len(every)
    count = max(q.level for q in every)
    held_out = [sum(q.level == level for q in questions.eval) for level in range(1, count + 1)]
    assert held_out == [12 // count] * count
    return [[q.text for q in questions.train if q.level == n] for n in range(1, count + 1)]


def terms_and_digits(texts: list[str]) -> tuple[int, int]:
    """The most terms of a sum, and the most digits of a number."""
    words = [text.split(": ")[1].removesuffix(" =").split() for text in texts]
    return max(len(own) // 2 + 1 for own in words), max(len(w) for own in words for w in own)


def test_levels_are_those_of_the_curriculum_of_the_package():
    assert [terms_and_digits(texts) for texts in leveled(3)] == [(2, 1), (3, 2), (4, 3)]
    fixed = {"chain_sum": {"min_terms": 2, "max_terms": 2}}
    assert [terms_and_digits(own) for own in leveled(2, options=fixed)] == [(2, 1), (2, 2)]


def test_levels_may_have_options_of_their_own():
    digits = [{"chain_sum": {"max_digits": n}} for n in (1, 4)]
    options = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1}}
    found = leveled(digits, options=options)
    assert [terms_and_digits(texts) for texts in found] == [(2, 1), (2, 4)]
    both = leveled([{}, {"products": {"max_digits": 1}}], "reasoning-gym:chain_sum,products")
    assert [sum("*" in text for text in own) for own in both] == [20, 20]


def test_levels_of_the_same_kind_are_other_questions_of_it():
    one, two = leveled(2, grow={"levels": 2, "harder": False}, options=SMALL)
    assert terms_and_digits(one) == terms_and_digits(two) == (2, 1)
    assert asked(options=SMALL, eval_size=6)[0] == one  # those of a run that does not grow


def test_an_easy_level_gives_what_it_has():
    sizes = [len(texts) for texts in leveled(2, size=300)]
    # Sums and differences of two digits: 200, six of which are held out. Tries may miss a few.
    assert 190 <= sizes[0] <= 194
    assert sizes[1] == 300


@pytest.mark.parametrize(
    ("source", "levels", "message"),
    [
        (SUMS, 12, "level 12 of data.grow: the curriculum of chain_sum has 11 levels; lower"),
        ("reasoning-gym:acre", 2, "no curriculum for acre; give data.grow.levels a list"),
        ("reasoning-gym:chain_sun", 2, "has no data set 'chain_sun'; nearest is chain_sum"),
        (SUMS, [{}, {"products": {}}], "data.grow.levels has 'products', but .* names chain_sum"),
        (
            SUMS,
            [{}, {"chain_sum": {"max_terms": 1}}],
            "level 2 of data.grow: data.options.chain_sum",
        ),
    ],
)
def test_levels_that_cannot_be_made(source, levels, message):
    with pytest.raises(InputError, match=message) as error:
        leveled(levels, source)
    assert "\n" not in str(error.value)


def test_a_run_that_grows_and_its_resumption_see_the_same_prompts(byte_model, tmp_path):
    grow = {"data.grow.levels": "2", "data.grow.when": "steps", "data.grow.interval": "1"}
    whole, parts = whole_and_resumed(
        lambda out, **more: words(byte_model, out, **grow, **more), tmp_path
    )
    assert drawn(whole, "prompt_id") == drawn(parts, "prompt_id")
    config = load_config(None, words(byte_model, tmp_path / "held-out", **grow))
    result = run_evaluation(config, [SUMS], 1, 1, None, NoView())
    assert result["benchmarks"][0]["prompts"] == 4  # two of each level
