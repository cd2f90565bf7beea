"""Reading, rendering and splitting prompts, on files the tests write."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from dibs.config import DataConfig
from dibs.data.arithmetic import TASKS
from dibs.data.curriculum import batches
from dibs.data.prompts import build_prompts, check_batch_size, prompt_id, read_questions
from dibs.model.warm_start import build_tokenizer
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
    assert plain.train[0].text == "Be brief.\n\nQ: What is 0/7? A:"


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
        (
            '{"problem": "a", "answer": "b"}\n',
            {"prompt_column": "prompt"},
            "row 1: no column 'prompt'; it has problem, answer. Set data.prompt_column",
        ),
        (
            '{"prompt": "a", "gold": "b"}\n',
            {},
            "no column any of 'answer', .*'solution'; it has prompt, gold",
        ),
        ("", {}, "the data set is empty"),
        ("\n \n", {}, "the data set is empty"),
        (
            '{"prompt": "a", "answer": {"b": 1}}\n',
            {},
            "row 1: column 'answer' holds .*, neither text nor",
        ),
        ("[1, 2]\n", {}, "line 1: expected an object"),
        ('{"prompt": "", "answer": "b"}\n', {}, r"no usable prompts \(dropped: .*empty question"),
        ('{"prompt": "a", "answer": "b"}\n', {}, "no prompts to evaluate on; set data.eval"),
        (
            '{"prompt": 5, "answer": "b"}\n',
            {},
            "row 1: column 'prompt' holds '5', neither text nor",
        ),
        ('{"prompt": "\udcff", "answer": "b"}\n', {}, "cannot read .*UnicodeDecodeError"),
        (
            '{"prompt": "a", "answer": 1}\n\n{broken\n',
            {},
            "cannot read .*rows.jsonl, line 3: JSONDecodeError",
        ),
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


def test_what_is_too_long_is_counted_among_the_first_of_data_eval(tokenizer, tmp_path):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    texts = ["b", "long " * 40, "c", "long " * 50, "d"]
    for path, asked in ((train, ["a"]), (held_out, texts)):
        path.write_text("".join(f'{{"prompt": "{text}", "answer": "1"}}\n' for text in asked))
    config = DataConfig(train=str(train), eval=str(held_out), max_prompt_length=100)
    for size, too_long in ((1, 0), (2, 1), (3, 2), (9, 2)):
        sized = config.model_copy(update={"eval_size": size})
        told = load_prompts(sized, tokenizer, seed=0)
        assert (len(told.eval), told.too_long) == (min(size, 3), too_long)


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


def questions(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(DataConfig(train=str(path), **options), seed=0).train


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"problem": "p", "solution": r"so \boxed{\frac{1}{2}}."}, "p", r"\frac{1}{2}"),
        ({"question": "q", "answer": "7 * 6 = 42\n#### 1,042"}, "q", "1,042"),
        ({"prompt": "p", "solution": "prose without a box"}, "p", ""),
        ({"prompt": "p", "answer": r"$\boxed{5}$"}, "p", "5"),
        ({"question": "q", "final_answer": ["1", "2"]}, "q", "1, 2"),
        ({"prompt": "p", "reward_model": {"style": "rule", "ground_truth": "72"}}, "p", "72"),
        ({"prompt": "p", "problem": "other", "answer": 3}, "p", "3"),
    ],
)
def test_columns_of_every_kind_are_found(tmp_path, row, text, answer):
    (found,) = questions(tmp_path, row)
    assert (found.text, found.answer) == (text, answer)


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1/7?"},
]


def test_prompts_may_be_messages_as_trl_and_verl_write_them(tokenizer, tmp_path):
    path = tmp_path / "verl.parquet"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {i}/7?"}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
        }
        for i in range(20)
    ]
    pd.DataFrame(rows).to_parquet(path)
    found = load_prompts(DataConfig(train=str(path), template="boxed"), tokenizer, seed=0)
    first = found.train[0]
    assert first.text.startswith("<|im_start|>user\nWhat is 0/7?\nPlease reason step by step")
    assert first.answer == "0"
    (question,) = questions(tmp_path, {"prompt": MESSAGES, "solution": "\\boxed{3}"})
    assert question.text == "What is 1/7?"
    assert question.messages == (("system", "Be brief."), ("user", "What is 1/7?"))
    for prompt in ([], [{"role": "user"}], [{"role": "system", "content": "x"}], {"a": 1}):
        with pytest.raises(InputError, match=r"row 1: column 'prompt' holds .*, neither text nor"):
            questions(tmp_path, {"prompt": prompt, "answer": "1"})


def test_named_templates_and_a_system_message_of_the_rows_own(tokenizer, tmp_path):
    rows = [
        {"prompt": MESSAGES, "answer": "1"},
        *({"prompt": f"q{i}", "answer": 1} for i in range(12)),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(path), template="boxed-system", eval_size=1)
    found = load_prompts(config, tokenizer, seed=0)
    texts = [p.text for p in [*found.train, *found.eval]]
    assert sum("<|im_start|>system\nBe brief.<|im_end|>" in text for text in texts) == 1
    assert sum("within \\boxed{}.<|im_end|>\n<|im_start|>user\nq" in text for text in texts) == 12


def test_rows_can_be_limited_and_streamed(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"prompt": [f"q{i}" for i in range(9)], "answer": range(9)}).to_parquet(path)
    for streaming in (False, True):
        config = DataConfig(train=str(path), max_rows=4, streaming=streaming)
        assert [q.answer for q in read_questions(config, seed=0).train] == ["0", "1", "2", "3"]


def test_known_sets_are_named_where_a_source_is_not_found(tmp_path):
    with pytest.raises(InputError, match=r"cannot read no-such-set: .*known sets: math, gsm8k"):
        read_questions(DataConfig(train="no-such-set"), seed=0)
