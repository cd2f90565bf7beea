"""The same rows in every container, value kind by value kind; and rows that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dibs.cli import main
from dibs.config import DataConfig
from dibs.data.prompts import read_questions
from dibs.types import InputError
from odd_models import byte_tokenizer

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\n"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
LONG = "x" * 200_000
KINDS: dict[str, tuple[Any, Any, str, str]] = {
    "text": ("q", "7", "q", "7"),
    "whole number": ("q", 7, "q", "7"),
    "number": ("q", 0.5, "q", "0.5"),
    "numbers": ("q", [1, 2], "q", "1, 2"),
    "texts": ("q", ["a", "b"], "q", "a, b"),
    "decimal": ("q", Decimal("0.25"), "q", "0.25"),
    "long": ("q", LONG, "q", LONG),
    "nan": ("q", float("nan"), "q", ""),
    "infinite": ("q", float("-inf"), "q", ""),
    "null": ("q", None, "q", ""),
    "no question": (None, "7", "", "7"),
    "nan in a list": ("q", [1.0, float("nan")], "q", ""),
    "turns": (TURNS, "7", "q", "7"),
    "parts": (PARTS, "7", "q", "7"),
    "parts alone": ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "7", "ab", "7"),
    "nested": ("q", {"value": 7}, "q", "7"),
}
"""Prompt and answer as written; question and gold answer as read."""


def as_json(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row, default=float) for row in rows]


def write(folder: Path, container: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows.{container.rsplit(maxsplit=1)[-1]}"
    lines = "\n".join(as_json(rows)) + "\n"
    if container in ("jsonl", "lines in .json"):
        path.write_text(lines)
    elif container in ("jsonl.gz", "gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif container in ("json", "array in .jsonl"):
        path.write_text(f"[{', '.join(as_json(rows))}]")
    elif container == "columns in .json":
        path.write_text(*as_json([{key: [row[key] for row in rows] for key in rows[0]}]))
    elif container == "rows inside .json":
        path.write_text(*as_json([{"version": "1", "data": rows}]))
    elif container == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        cells = [
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
        ]
        pd.DataFrame(cells).to_csv(folder / "rows.csv", index=False, quoting=csv.QUOTE_MINIMAL)
        if container == "csv.gz":
            path.write_bytes(gzip.compress((folder / "rows.csv").read_bytes()))
    return path


CONTAINERS = [
    "jsonl",
    "json",
    "jsonl.gz",
    "gz",
    "lines in .json",
    "array in .jsonl",
    "columns in .json",
    "rows inside .json",
    "csv",
    "csv.gz",
    "parquet",
]
NOT_IN_CSV = {"numbers", "texts", "nan in a list", "nested", "infinite", "parts alone"}
"""A CSV cell is a text: -inf and [1, 2] are what is written there."""


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_kind_of_value_reads_the_same_from_every_container(tmp_path, container):
    for kind, (prompt, answer, question, gold) in KINDS.items():
        if container.startswith("csv") and kind in NOT_IN_CSV:
            continue
        rows = [{"prompt": prompt, "answer": answer}] * 2
        folder = tmp_path / kind.replace(" ", "_")
        folder.mkdir()
        column = "answer.value" if kind == "nested" else "answer"
        config = DataConfig(train=str(write(folder, container, rows)), answer_column=column)
        found = read_questions(config, seed=0).train
        assert [(each.text, each.answer) for each in found] == [(question, gold)] * 2, kind
        if kind == "turns":
            assert found[0].messages == (("user", "q"), ("assistant", "<think>\n"))


def test_numbers_stay_as_they_are_written(tmp_path):
    for name, text in (("a.json", '{"prompt": ["q"], "answer": [0.50]}'), ("b.json", "{}")):
        (tmp_path / name).write_text(text)
    (found,) = read_questions(DataConfig(train=str(tmp_path / "a.json")), seed=0).train
    assert found.answer == "0.50"
    with pytest.raises(InputError, match=r"row 1: no column .*; it has none"):
        read_questions(DataConfig(train=str(tmp_path / "b.json")), seed=0)


BAD = {
    "jsonl": (
        ['{"prompt": "a", "answer": 1}', "{broken", '{"prompt": "b", "answer": {}}', "[]"],
        "line 2: JSONDecodeError",
    ),
    "json": (['[{"prompt": "a", "answer": 1}, 5, {"prompt": "b"}, {}]'], "row 2: expected an"),
    "csv": (["prompt,answer", "a,1", '"b"x,2', "c,\udcff", "d,\udcfe"], "row 2: Error: ','"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_few_bad_rows_are_left_out_and_counted(tmp_path, kind):
    lines, message = BAD[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    found = read_questions(DataConfig(train=str(path), max_bad_rows=3), seed=0)
    assert [question.text for question in found.train] == ["a"]
    ((reason, count),) = found.dropped.items()
    assert count == 3
    assert reason.startswith("unreadable; the first: ")
    assert message in reason
    with pytest.raises(InputError, match=r"3 rows cannot be read, and data.max_bad_rows is 2; the"):
        read_questions(DataConfig(train=str(path), max_bad_rows=2), seed=0)
    with pytest.raises(InputError) as caught:
        read_questions(DataConfig(train=str(path)), seed=0)
    assert message in str(caught.value)


def test_the_first_bad_row_is_shown(tmp_path, capsys):
    byte_tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{i}", "answer": i} for i in range(20)]
    path.write_text("\n".join(["{broken", *as_json(rows)]))
    words = [f"--policy.model={tmp_path / 'model'}", f"--data.train={path}"]
    assert main(["data", *words, "--data.max_bad_rows=1", "--train.prompts_per_step=2"]) == 0
    assert "1 row dropped: unreadable; the first: cannot read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"prompt": "a", "answer": "b"}\n' * 9999)[:200]),
        ("no.json.gz", b"no gzip"),
        ("no.parquet", b"PAR1"),
        ("pretty.json", b"{\n"),
        ("empty.json", b""),
        ("empty.csv", b""),
        ("null.json", b"null"),
        ("deep.json", b"[" * 100_000),
        ("unclosed.csv", b'prompt,answer\n"a,1\n'),
        ("zeros.csv", b"\0\0\0"),
        ("zeros.jsonl", b"\0\0\0"),
        ("rows.txt.gz", b""),
    ],
)
@pytest.mark.parametrize("bad_rows", [0, 5])
def test_damaged_files_are_one_line(tmp_path, name, content, bad_rows):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_questions(DataConfig(train=str(tmp_path / name), max_bad_rows=bad_rows), seed=0)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
