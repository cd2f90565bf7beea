"""Several accepted forms of an answer, columns for users' verifiers, and weighted rewards."""

from __future__ import annotations

import json
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from dibs.config import DataConfig, VerifyConfig
from dibs.config.load import load_config
from dibs.data.cells import gold_of
from dibs.data.gold_answers import GoldAnswer, columns_of, forms_of
from dibs.data.questions import read_questions_of
from dibs.files import read_lines
from dibs.rollouts.verify.verifiers import build_verifier, gold_reader
from dibs.rollouts.verify.verify_file import verify_file
from dibs.types import InputError
from tiny_runs import run

DOCUMENT = Path(__file__).parents[2].joinpath("docs/verifiers.md").read_text(encoding="utf-8")


def verdicts(config: VerifyConfig, *items: tuple[str, str]) -> list:
    verifier = build_verifier(config, "some.jsonl")
    try:
        return list(verifier.verdicts(items))
    finally:
        verifier.close()


def statuses(config: VerifyConfig, *items: tuple[str, str]) -> list[str]:
    return [verdict.status for verdict in verdicts(config, *items)]


@pytest.mark.parametrize(
    ("cell", "meaning", "expected"),
    [
        (["4", "four"], "any", ("4", "four")),
        (["4", "four"], "one", ("4, four",)),
        ('["4", "four"]', "any", ("4", "four")),
        ('["4", "four"]', "one", ('["4", "four"]',)),
        ([4, 4.5, "4"], "any", ("4", "4.5")),
        (["4", None, " "], "any", ("4",)),
        ("[0, 1)", "any", ("[0, 1)",)),  # an interval is no JSON
        ("7", "any", ("7",)),
        (7, "any", ("7",)),
        ([r"The answer is \boxed{3}.", "3.0"], "any", ("3", "3.0")),
    ],
)
def test_accepted_forms_of_a_cell(cell, meaning, expected):
    assert forms_of(gold_of(cell, "here", False, meaning)) == expected


@pytest.mark.parametrize("cell", [[], [None], ["", " "], None])
def test_no_form_is_no_answer(cell):
    assert gold_of(cell, "here", False, "any") == ""


def test_forms_that_are_no_text_are_refused():
    with pytest.raises(InputError, match="here holds"):
        gold_of([{"a": 1}], "here", False, "any")


def test_a_gold_answer_goes_to_other_processes_whole():
    answer = GoldAnswer("a | b", ("a", "b"), {"level": 3})
    again = pickle.loads(pickle.dumps(answer))
    assert (again, forms_of(again), columns_of(again)) == (answer, ("a", "b"), {"level": 3})
    assert forms_of("plain") == ("plain",)
    assert columns_of("plain") == {}


@pytest.mark.parametrize("verifier", ["math", "exact", "numeric"])
def test_any_form_is_right(verifier):
    gold = GoldAnswer("7 | 8", ("7", "8"))
    given = [r"\boxed{7}", r"\boxed{8}", r"\boxed{9}", r"\boxed{7, 8}"]
    items = [(gold, each) for each in given]
    expected = ["accepted", "accepted", "rejected", "rejected"]
    assert statuses(VerifyConfig(verifier=verifier, workers=1), *items) == expected


def test_a_form_that_cannot_be_judged_counts_only_where_none_can():
    config = VerifyConfig(verifier="numeric")
    half = GoldAnswer("many | 8", ("many", "8"))
    assert statuses(config, (half, r"\boxed{8}"), (half, r"\boxed{9}")) == ["accepted", "rejected"]
    none = GoldAnswer("many | few", ("many", "few"))
    assert statuses(config, (none, r"\boxed{8}")) == ["error"]


def test_every_form_of_a_gold_answer_must_be_readable():
    reads = gold_reader(VerifyConfig(verifier="numeric"), "some.jsonl")
    assert reads(GoldAnswer("1 | 2", ("1", "2")))
    assert not reads(GoldAnswer("1 | many", ("1", "many")))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_lists_and_columns_of_every_container(kind, tmp_path):
    rows = [
        {"question": "one?", "answer": ["1", "one"], "level": 2, "extra": "x"},
        {"question": "two?", "answer": ["2", "two"], "level": 3, "extra": "y"},
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        quoted = ['"[""1"", ""one""]"', '"[""2"", ""two""]"']
        lines = [f"one?,{quoted[0]},2,x", f"two?,{quoted[1]},3,y"]
        path.write_text("\n".join(["question,answer,level,extra", *lines]))
    else:
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame(rows).to_parquet(path)
    config = DataConfig(train=str(path), answers="any", columns=("level",))
    questions = list(read_questions_of(config, str(path), "train"))
    assert [forms_of(q.answer) for q in questions] == [("1", "one"), ("2", "two")]
    assert [int(columns_of(q.answer)["level"]) for q in questions] == [2, 3]
    with pytest.raises(InputError, match=r"no column 'depth'.*Set data.columns"):
        list(
            read_questions_of(config.model_copy(update={"columns": ("depth",)}), str(path), "train")
        )


def test_columns_reach_the_users_function():
    config = VerifyConfig(verifier="own_verifiers:leveled", workers=1)
    right = GoldAnswer("7", columns={"level": 3, "hint": "x"})
    (verdict,) = verdicts(config, (right, "it is 7"))
    assert verdict.reward == 3.5
    (missing,) = verdicts(config, (GoldAnswer("7"), "it is 7"))
    assert missing.status == "error"
    assert "level" in missing.reason


def test_a_file_passes_the_columns_that_a_function_has_parameters_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"completion": "7", "answer": ["seven", "7"], "level": 2, "other": "ignored"},
        {"completion": "8", "answer": "7", "level": 2, "hint": "x"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = VerifyConfig(verifier="own_verifiers:leveled", workers=1)
    verify_file(path, config, tmp_path / "out.jsonl", Console(quiet=True))
    assert [line["reward"] for line in read_lines(tmp_path / "out.jsonl")] == [2.0, 0.5]
    path.write_text(json.dumps({"completion": "7", "answer": ["7", None]}))
    with pytest.raises(InputError, match="row 1: answer holds None, not text"):
        verify_file(path, config, None, Console(quiet=True))


def rewarding(*rewards: dict, **more) -> VerifyConfig:
    return VerifyConfig.model_validate({"rewards": list(rewards), "workers": 1, **more})


def test_the_reward_is_the_weighted_sum():
    config = rewarding(
        {"verifier": "exact"}, {"verifier": "own_verifiers:brevity", "weight": 0.5, "name": "short"}
    )
    right, wrong, none = verdicts(config, ("7", r"\boxed{7}"), ("7", r"\boxed{8}"), ("7", ""))
    assert right.rewards == {"exact": 1.0, "short": 0.1}
    assert right.reward == pytest.approx(1.05)
    assert right.status == "accepted"
    assert right.reason == "exact 1, short 0.1"
    assert (wrong.reward, wrong.status) == (pytest.approx(0.05), "rejected")
    assert (none.reward, none.status) == (0.5, "rejected")


def test_a_penalty_can_keep_a_right_answer_from_being_accepted():
    config = rewarding({"verifier": "exact"}, {"verifier": "own_verifiers:brevity", "weight": -1})
    (verdict,) = verdicts(config, ("7", r"\boxed{7}"))
    assert (verdict.reward, verdict.status) == (pytest.approx(0.9), "rejected")


def test_where_one_fails_there_is_no_verdict_and_the_reason_names_it():
    config = rewarding({"verifier": "exact"}, {"verifier": "own_verifiers:silent"})
    (verdict,) = verdicts(config, ("7", r"\boxed{7}"))
    assert verdict.status == "error"
    assert verdict.reason == "silent: RuntimeError: no idea"


def test_no_answer_for_any_reward_is_no_answer():
    config = rewarding({"verifier": "exact"}, {"verifier": "math"})
    assert statuses(config, ("7", "I do not know"))[0] == "no_answer"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[{verifier: math}, {verifier: math}]", "rewards has math twice"),
        ("[{verifier: auto}]", "auto has no use among several"),
        ("[{verifier: math, weight: 0}]", "reward math has weight 0"),
        ("[{verifier: math, weight: .nan}]", "finite number"),
        ("[{verifier: math, wieght: 1}]", "unknown key verify.rewards.0.wieght"),
        ("[{weight: 1}]", "verify.rewards.0.verifier"),
    ],
)
def test_rewards_that_cannot_be(value, said):
    with pytest.raises(InputError, match=said) as refused:
        load_config(None, {"verify.rewards": value})
    assert "\n" not in str(refused.value)


def test_rewards_beside_a_verifier_are_refused():
    values = {"verify.rewards": "[{verifier: exact}]", "verify.verifier": "math"}
    with pytest.raises(InputError, match="verifier math has no use"):
        load_config(None, values)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--verify.rewards=[{verifier: maths}]"], "unknown verifier 'maths'"),
        (["--data.columns=[level]"], "data.columns level are for a verifier of your own"),
        (
            ["--data.columns=[level]", "--verify.verifier=own_verifiers:leveled"],
            "prompts of arithmetic-easy have no columns",
        ),
    ],
)
def test_what_a_run_has_no_use_for(more, said, tmp_path):
    with pytest.raises(InputError, match=said):
        run(tmp_path / "run", *more)


def test_each_reward_is_logged_on_its_own(tmp_path):
    rewards = "[{verifier: arithmetic}, {verifier: 'own_verifiers:brevity', weight: 0.1}]"
    run(
        tmp_path / "run",
        f"--verify.rewards={rewards}",
        "--verify.workers=1",
        "--allocate.allocator=uniform",
        "--estimate.mode=none",
        "--algorithm.name=grpo",
        "--tracking.samples_interval=1",
    )
    steps = list(read_lines(tmp_path / "run" / "metrics.jsonl"))[1:]
    for line in steps:
        expected = line["reward/arithmetic"] + 0.1 * line["reward/brevity"]
        assert line["reward"] == pytest.approx(expected)
        assert line["accept_rate"] == pytest.approx(line["reward/arithmetic"])
    sample = next(iter(read_lines(tmp_path / "run" / "samples.jsonl")))
    assert set(sample["rewards"]) == {"arithmetic", "brevity"}


def test_the_examples_of_the_documentation_work(monkeypatch, tmp_path):
    first, second = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    mine = types.ModuleType("mine")
    exec(first + second, mine.__dict__)
    monkeypatch.setitem(sys.modules, "mine", mine)
    assert mine.same_words("red Blue", "so:\nblue red") == 1.0
    assert mine.same_words("red", "") == 0.0
    assert mine.within("3", "about 3.05", tolerance=0.1) == 1.0
    assert mine.within("3", "many") == 0.0
    (yaml,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    path = tmp_path / "c.yaml"
    path.write_text(yaml)
    assert [r.label for r in load_config(path).verify.rewards] == ["math", "brevity"]
    (row,) = re.findall(r"```json\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    gold = gold_of(json.loads(row)["answer"], "here", False, "any")
    config = VerifyConfig(verifier="math", workers=1)
    assert statuses(config, (gold, r"\boxed{\pm 2}")) == ["accepted"]
