"""Reading, rendering and splitting prompts, on files the tests write."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from dibs.config import DataConfig
from dibs.prompts import batches, build_prompts, check_batch_size, prompt_id, read_questions
from dibs.tasks.arithmetic import TASKS
from dibs.tasks.warm_start import build_tokenizer
from dibs.types import InputError


def load_prompts(config, tokenizer, seed, context=None):
    return build_prompts(read_questions(config, seed), config, tokenizer, seed, context)


@pytest.fixture
def tokenizer(byte_model):
    return PreTrainedTokenizerFast.from_pretrained(byte_model)


def columns(**options) -> dict:
    return {"prompt_column": "problem", **options}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_file_type_gives_the_same_prompts(tokenizer, math_file, tmp_path, kind):
    frame = pd.read_json(math_file, lines=True)
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path = math_file
    elif kind == "json":
        path.write_text(frame.to_json(orient="records"))
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    found = load_prompts(DataConfig(train=str(path), **columns()), tokenizer, seed=0)
    assert len(found.train) == 36
    assert len(found.eval) == 4
    everything = {p.prompt_id: p for p in [*found.train, *found.eval]}
    assert set(everything) == {
        prompt_id(f"What is {i}/7?", f"\\frac{{{i}}}{{7}}") for i in range(40)
    }


def test_chat_template_system_prompt_and_template(tokenizer, math_file):
    config = DataConfig(
        train=str(math_file), system_prompt="Be brief.", template="Q: {prompt} A:", **columns()
    )
    prompt = load_prompts(config, tokenizer, seed=0).train[0]
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: What is 0/7? A:<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(prompt.token_ids) == prompt.text
    plain = load_prompts(config.model_copy(update={"chat_template": False}), tokenizer, seed=0)
    assert plain.train[0].text == "Q: What is 0/7? A:"


def test_held_out_prompts_are_seeded_and_disjoint(tokenizer, math_file):
    config = DataConfig(train=str(math_file), **columns())
    first, same, other = (load_prompts(config, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first.eval != other.eval
    assert not {p.prompt_id for p in first.train} & {p.prompt_id for p in first.eval}


def test_an_evaluation_file_is_taken_out_of_the_training_set(tokenizer, math_file, tmp_path):
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text("".join(line + "\n" for line in math_file.read_text().splitlines()[:3]))
    config = DataConfig(train=str(math_file), eval=str(held_out), **columns())
    found = load_prompts(config, tokenizer, seed=0)
    assert len(found.eval) == 3
    assert len(found.train) == 37
    assert found.dropped == {"also in the evaluation set": 3}


def test_duplicates_empty_and_long_rows_are_dropped_and_counted(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = [{"prompt": f"q{i}", "answer": i} for i in range(20)]
    bad = [good[0], good[1], {"prompt": " ", "answer": 1}, {"prompt": "q", "answer": None}]
    rows = [*good, *bad, {"prompt": "x" * 500, "answer": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(DataConfig(train=str(path)), tokenizer, seed=0, context=200)
    assert len(found.train) + len(found.eval) == 20
    assert found.dropped == {
        "duplicate question": 2,
        "empty question or answer": 2,
        "longer than 200 tokens": 1,
    }
    assert found.train[0].answer in {str(i) for i in range(20)}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"problem": "a", "answer": "b"}\n', {}, "no column 'prompt'; it has problem, answer"),
        ('{"prompt": "a", "gold": "b"}\n', {}, "no column 'answer'; it has prompt, gold"),
        ("", {}, "the data set is empty"),
        ("\n \n", {}, "the data set is empty"),
        (
            '{"prompt": "a", "answer": [1]}\n',
            {},
            "row 1: column 'answer' holds .*, neither text nor",
        ),
        ("[1, 2]\n", {}, "row 1: expected an object"),
        ('{"prompt": "", "answer": "b"}\n', {}, r"no usable prompts \(dropped: .*empty question"),
        ('{"prompt": "a", "answer": "b"}\n', {}, "no prompts to evaluate on; set data.eval"),
        ('{"prompt": 5, "answer": "b"}\n', {}, "row 1: column 'prompt' holds '5', not text"),
        ('{"prompt": "\udcff", "answer": "b"}\n', {}, "cannot read .*UnicodeDecodeError"),
        ("{}\n\n{broken\n", {}, "cannot read .*rows.jsonl, line 3: JSONDecodeError"),
    ],
)
def test_bad_files_are_one_clear_line(tokenizer, tmp_path, content, options, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(DataConfig(train=str(path), **options), tokenizer, seed=0)
    assert "\n" not in str(caught.value)


def test_answers_stay_as_they_are_written(tokenizer, tmp_path):
    answers = ["007", "1", "0.50", "NA", "2024-01-01", "1/2"]
    lines = ["prompt,answer", *(f"q{i},{answer}" for i, answer in enumerate(answers))]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(lines))
    found = read_questions(DataConfig(train=str(table)), seed=0).train
    assert [question.answer for question in found] == answers
    literals = ["1", "0.50", "3.0", '"2024-01-01"', "-0", "1e5"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "q", "answer": {x}}}\n' for x in literals))
    found = read_questions(DataConfig(train=str(rows)), seed=0).train
    assert [question.answer for question in found] == [x.strip('"') for x in literals]


def test_a_question_is_held_out_whatever_its_answer(tokenizer, tmp_path):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    rows = [{"prompt": f"q{i % 20}", "answer": str(i)} for i in range(40)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out.write_text('{"prompt": "q3", "answer": "3.0"}\n{"prompt": " ", "answer": "1"}\n')
    split = load_prompts(DataConfig(train=str(train)), tokenizer, seed=0)
    assert split.dropped == {"duplicate question": 20}
    assert not {p.text for p in split.train} & {p.text for p in split.eval}
    given = load_prompts(DataConfig(train=str(train), eval=str(held_out)), tokenizer, seed=0)
    assert len(given.train) == 19
    assert given.dropped["empty question or answer (evaluation)"] == 1
    assert given.dropped["also in the evaluation set"] == 1


def test_missing_and_unknown_files(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        load_prompts(DataConfig(train=str(tmp_path / "nowhere.jsonl")), tokenizer, seed=0)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(InputError, match="unknown file type; give one of"):
        load_prompts(DataConfig(train=str(text)), tokenizer, seed=0)


def test_the_embedded_task_holds_out_its_evaluation_prompts():
    found = load_prompts(DataConfig(size=300, eval_size=50), build_tokenizer(), seed=0)
    assert len(found.train) == 300
    assert len(found.eval) == 50
    assert not {p.text for p in found.train} & {p.text for p in found.eval}
    hard = load_prompts(DataConfig(train="arithmetic-hard", size=300), build_tokenizer(), seed=0)
    assert max(p.text.count("A") + p.text.count("F") for p in hard.train) == 2


def test_an_embedded_task_without_enough_problems_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(TASKS, "arithmetic", (1, 1))
    with pytest.raises(
        InputError, match=r"data.size or data.eval_size: only \d+ distinct problems"
    ):
        load_prompts(DataConfig(size=1000), build_tokenizer(), seed=0)


def test_batches_cover_an_epoch_without_repeats_and_reshuffle():
    prompts = load_prompts(DataConfig(size=10, eval_size=1), build_tokenizer(), seed=0).train
    draw = batches(prompts, 3, seed=0)
    epochs = [[next(draw) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        ids = [p.prompt_id for batch in epoch for p in batch]
        assert len(set(ids)) == 9
    assert epochs[0] != epochs[1]
    again = batches(prompts, 3, seed=0)
    assert [next(again) for _ in range(3)] == epochs[0]
    with pytest.raises(InputError, match=r"train.prompts_per_step is 11, but there are 10"):
        check_batch_size(prompts, 11)
