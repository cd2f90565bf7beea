"""Levels of prompts: which questions they hold, when they are added, and what steps draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dibs.config import Config, DataConfig
from dibs.config.load import load_config
from dibs.data.curriculum import Curriculum, level_sizes, up_to
from dibs.data.packages import training_questions
from dibs.data.prompts import build_prompts, read_questions
from dibs.model.warm_start import build_tokenizer
from dibs.types import InputError
from tiny_groups import make_group, make_prompt

LEVELS = {"levels": 3, "interval": 2, "accept_rate": 0.5}
PROMPTS = [replace(make_prompt(f"{i:02}"), level=1 + i // 4) for i in range(12)]
"""Three levels of four prompts."""


def curriculum(grow: dict | None = None, **sections) -> Curriculum:
    config = Config.model_validate(
        {"data": {"grow": grow or {}}, "train": {"prompts_per_step": 2}, **sections}
    )
    return Curriculum(PROMPTS, config)


def groups(*rewards: list[float], level: int = 1) -> list:
    return [
        make_group(own, replace(make_prompt(f"{i:02}"), level=level))
        for i, own in enumerate(rewards)
    ]


def names(prompts) -> list[str]:
    return [prompt.prompt_id for prompt in prompts]


def test_a_run_that_does_not_grow_draws_as_ever_and_measures_nothing():
    plain = [replace(prompt, level=1) for prompt in PROMPTS]
    own = Curriculum(plain, Config.model_validate({"train": {"prompts_per_step": 5}, "seed": 3}))
    for epoch in (1, 2):
        order = np.random.default_rng([3, epoch]).permutation(12)
        for rows in (order[:5], order[5:10]):
            assert names(own.draw()) == [f"{i:02}" for i in rows]
            assert own.observe(groups([1.0, 1.0])) == {}


def test_a_level_is_added_once_its_accept_rate_reaches_the_mark():
    own = curriculum(LEVELS)
    assert {p.level for _ in range(4) for p in own.draw()} == {1}
    # A prompt counts once however many completions it has: (1/4 + 1) / 2.
    first = own.observe(groups([1.0, 0.0, 0.0, 0.0], [1.0]))
    assert first == {"level": 1, "level_accept_rate": 0.625}
    assert own.level == 1  # one step is fewer than the two it takes
    second = own.observe(groups([0.0, 0.0], [1.0, 0.0], [1.0, 1.0], []))
    assert second == {"level": 1, "level_accept_rate": (0.25 + 1 + 0 + 0.5 + 1) / 5}
    assert own.level == 2
    assert {p.level for _ in range(4) for p in own.draw()} == {1, 2}
    # Only the newest level decides, and what was seen before it was added is left out.
    assert own.observe(groups([1.0, 1.0]))["level_accept_rate"] is None
    own.observe(groups([0.0, 0.0], level=2))
    assert own.observe(groups([1.0, 0.0, 0.0], level=2))["level_accept_rate"] == pytest.approx(
        1 / 6
    )
    assert own.level == 2
    own.observe(groups([1.0], level=2))
    assert own.level == 3
    for _ in range(4):  # there is no fourth
        own.observe(groups([1.0], level=3))
    assert own.level == 3


def test_held_out_prompts_decide_where_they_are_to():
    own = curriculum({**LEVELS, "when": "held_out"})
    solved, failed = groups([1.0]), groups([0.0])
    assert own.observe(failed, solved)["level_accept_rate"] == 1  # too soon
    assert own.observe(solved)["level_accept_rate"] is None  # no evaluation
    assert own.level == 1
    own.observe(failed, groups([1.0], [0.0]))
    assert own.level == 2


def test_steps_alone_decide_where_they_are_to():
    own = curriculum({**LEVELS, "when": "steps"})
    levels = [own.observe(groups([0.0]))["level"] for _ in range(7)]
    assert levels == [1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("pool", [None, "all", 4])
def test_a_state_goes_on_with_the_same_draws(pool):
    sections = {} if pool is None else {"select": {"pool": pool}, "estimate": {"mode": "online"}}
    own = curriculum(LEVELS, **sections)
    for _ in range(3):
        own.draw()
        own.observe(groups([1.0]))
    assert own.level == 2
    own.draw()
    own.observe(groups([1.0], level=2))
    other = curriculum(LEVELS, **sections)
    other.load_state_dict(own.state_dict())
    for _ in range(9):
        assert names(own.draw()) == names(other.draw())
        seen = groups([1.0], level=own.level)
        assert own.observe(seen) == other.observe(seen)
        assert own.level == other.level
    assert own.level == 3


def test_a_checkpoint_from_before_there_were_levels_goes_on():
    own, other = curriculum(), curriculum()
    for _ in range(8):
        own.draw()
    other.load_state_dict({"drawn": 8})
    assert names(own.draw()) == names(other.draw())


def test_every_prompt_that_is_there_comes_in_a_pass():
    own = curriculum({**LEVELS, "when": "steps", "interval": 1})
    own.observe([])
    assert Counter(n for _ in range(4) for n in names(own.draw())) == Counter(names(PROMPTS[:8]))
    own.observe([])
    assert Counter(n for _ in range(6) for n in names(own.draw())) == Counter(names(PROMPTS))
    assert level_sizes(PROMPTS) == [4, 4, 4]
    assert names(up_to(PROMPTS, 2)) == names(PROMPTS[:8])


def asked(train: str, grow: dict, **options) -> tuple[list, list]:
    data = {"train": train, "size": 60, "eval_size": 16, "grow": grow, **options}
    questions = read_questions(DataConfig.model_validate(data), 0)
    assert questions.eval is not None
    texts = [q.text for q in [*questions.train, *questions.eval]]
    assert len(set(texts)) == len(texts)
    return questions.train, questions.eval


def steps_of(questions, level: int) -> set[int]:
    return {sum(map(q.text.count, "+-*")) for q in questions if q.level == level}


def test_levels_of_the_embedded_task_have_more_and_more_steps():
    for questions in asked("arithmetic", {"levels": 4}):
        assert [steps_of(questions, level) for level in (1, 2, 3, 4)] == [{1}, {2}, {3}, {4}]
    for questions in asked("arithmetic", {"levels": 2}):
        assert [steps_of(questions, level) for level in (1, 2)] == [{1, 2}, {3, 4}]
    train, held_out = asked("arithmetic", {"levels": 3, "harder": False, "size": 10})
    assert Counter(q.level for q in train) == {1: 60, 2: 10, 3: 10}
    assert Counter(q.level for q in held_out) == {1: 6, 2: 5, 3: 5}
    assert steps_of(train, 1) == {1, 2, 3, 4}


def test_one_level_is_what_there_was_without():
    plain = read_questions(DataConfig(train="arithmetic", size=60, eval_size=16), 0)
    assert asked("arithmetic", {"levels": 1, "interval": 3}) == (plain.train, plain.eval)


def test_a_level_with_fewer_prompts_gives_what_it_has():
    # One step: 28 numbers and 9 + 9 + 4 operations.
    train, held_out = asked("arithmetic", {"levels": 4}, size=700)
    assert sum(q.level == 1 for q in [*train, *held_out]) == 28 * 22


@pytest.mark.parametrize(
    ("train", "grow", "message"),
    [
        ("arithmetic", {"levels": 5}, "have 1 to 4 steps, so 4 levels at most; lower it, or set"),
        ("arithmetic-polar", {"levels": 2}, "is a mixture, which has no harder levels"),
        ("arithmetic", {"levels": [{}, {}]}, "takes no options; give a number"),
        ("train.jsonl", {"levels": 2}, "levels 2: prompts of train.jsonl are read, not made"),
        (
            "arithmetic",
            {"levels": 17, "harder": False},
            "eval_size 16 leaves some of the 17 levels",
        ),
        (
            "arithmetic-easy",
            {"levels": 20, "harder": False, "size": 40},
            "level 16 of data.grow has no prompts beside those held out",
        ),
    ],
)
def test_levels_that_cannot_be_made(train, grow, message):
    more = {"eval_size": 20} if grow["levels"] == 20 else {}
    with pytest.raises(InputError, match=message) as error:
        asked(train, grow, **more)
    assert "\n" not in str(error.value)


def test_a_first_level_that_is_not_easier_has_what_a_run_without_levels_has():
    for grow in ({}, {"levels": 2, "harder": False}):
        with pytest.raises(InputError, match="distinct problems of 1 step found, 1000 asked"):
            asked("arithmetic-easy", grow, size=1000)
    train, _ = asked("arithmetic-easy", {"levels": 2, "harder": False, "size": 1000})
    assert Counter(q.level for q in train) == {1: 60, 2: 28 * 22 - 16 - 60}


def test_options_of_a_level_are_keys_and_values():
    grow = {"levels": [{"chain_sum": 3}, {}]}
    with pytest.raises(InputError, match=r"level 1 .*data.grow.levels must hold keys and values"):
        training_questions(
            DataConfig.model_validate({"train": "reasoning-gym:chain_sum", "grow": grow}), 0
        )


def test_every_level_needs_a_prompt_that_fits():
    """A problem of k steps has 3k + 2 tokens: with 11, those of four steps are too long."""
    data = {"train": "arithmetic", "size": 20, "eval_size": 8, "grow": {"levels": 4}}
    config = DataConfig.model_validate(data)
    questions, tokenizer = read_questions(config, 0), build_tokenizer()
    short = config.model_copy(update={"max_prompt_length": 11})
    with pytest.raises(
        InputError, match=r"level 4 of data.grow has no prompts to train on .dropped"
    ):
        build_prompts(questions, short, tokenizer, 0)
    held_out = [q for q in questions.eval or () if q.level != 2]
    questions = replace(questions, eval=held_out)
    assert level_sizes(build_prompts(questions, config, tokenizer, 0).train) == [20] * 4
    config = DataConfig.model_validate({**data, "grow": {"levels": 4, "when": "held_out"}})
    with pytest.raises(InputError, match=r"level 2 of data.grow has no prompts to evaluate on"):
        build_prompts(questions, config, tokenizer, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        *(
            ({"data.grow.levels": levels}, "data.grow.levels: must be a number above 0, or a list")
            for levels in ("0", "1.5", "many", "true", "[]", "[3]", "{chain_sum: {max_terms: 2}}")
        ),
        ({"data.grow.accept_rate": "0"}, "data.grow.accept_rate: must be above 0"),
        (
            {"data.grow.levels": "2", "data.grow.when": "held_out", "evaluate.interval": "0"},
            "held_out needs evaluations during training; set evaluate.interval above 0",
        ),
        (
            {"data.grow.levels": "2", "data.grow.when": "held_out", "data.eval": "test.jsonl"},
            "data.eval test.jsonl has no levels; leave data.eval out",
        ),
        ({"data.grow.level": "2"}, "data.grow.levels"),
    ],
)
def test_settings_that_cannot_be(keys, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(None, keys)
    assert "\n" not in str(error.value)
