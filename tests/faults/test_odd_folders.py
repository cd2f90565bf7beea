"""No traceback for what lies in a folder: mutated runs, studies and results in report and compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dibs.cli import main
from dibs.files import to_json
from dibs.report.costs import COSTS, SCORES
from run_folders import make_run, write_lines

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            *(None, True, -1, 0, 10**9 + 1, 10**400, 1e308, -1e-300, float("nan"), float("-inf")),
            *("", "7", "\x1b[2J", "\ud800", "a/../b", "x" * 300, "<b>"),
            *([], [None], [[]], [1, "a"], {}, {"a": {"b": 1}}, {"": 0}),
        ]
    ),
    st.text(max_size=3),
    st.floats(),
    st.integers(),
)
Place = tuple[Any, ...]
"""Keys and indices that lead to a value."""


def places(value: Any, path: Place = ()) -> list[Place]:
    """Of all values within a value."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [place for key, each in inner for place in [(*path, key), *places(each, (*path, key))]]


def mutated(data: st.DataObject, value: Any) -> Any:
    """The value with one of its parts replaced, taken out, or under another key."""
    value = json.loads(json.dumps(value))
    found = places(value)
    if not found:
        return data.draw(ODD)
    *way, last = data.draw(st.sampled_from(found))
    inside = value
    for key in way:
        inside = inside[key]
    change = data.draw(st.sampled_from(["replace", "take out", "rename"]))
    if change == "replace":
        inside[last] = data.draw(ODD)
        return value
    taken = inside.pop(last)
    if change == "rename" and isinstance(inside, dict):
        inside[data.draw(st.sampled_from(["step", "learning_rate", "", "a.b", "\u2028"]))] = taken
    return value


def cut(data: st.DataObject, content: bytes) -> bytes:
    """The bytes with an end cut off, or with others in their midst."""
    at = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        return content[:at]
    return content[:at] + data.draw(st.binary(max_size=8)) + content[at:]


def spoil(data: st.DataObject, folder: Path) -> None:
    """Change one file of a folder: a value of it, its bytes, or whether it is there at all."""
    path = data.draw(st.sampled_from(sorted(each for each in folder.iterdir() if each.is_file())))
    change = data.draw(st.sampled_from(["value", "value", "value", "bytes", "gone", "folder"]))
    if change == "bytes":
        path.write_bytes(cut(data, path.read_bytes()))
    elif change != "value":
        path.unlink()
        if change == "folder":
            path.mkdir()
    elif path.suffix == ".jsonl":
        records = path.read_text().splitlines()
        at = data.draw(st.integers(0, len(records) - 1))
        records[at] = json.dumps(mutated(data, json.loads(records[at])))
        path.write_text("\n".join(records) + "\n")
    else:
        value = yaml.safe_load(path.read_text())
        text = json.dumps(mutated(data, value))  # JSON is YAML, too
        path.write_text(text)


MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def fits(words: list[str], capsys: Any) -> None:
    """The command ends well, or with one line."""
    capsys.readouterr()
    status = main(words)
    shown = capsys.readouterr()
    assert status in (0, 2), shown.err
    assert "Traceback" not in shown.err
    assert "\x1b[2J" not in shown.out + shown.err
    if status == 2:
        last = shown.err.splitlines()[-1]
        assert last.startswith(f"dibs {words[0]}: "), shown.err


def two_runs(folder: Path) -> None:
    make_run(folder / "one", steps=2)
    make_run(folder / "two", steps=2, allocator="uniform", mode="none", finished=False)


@pytest.mark.slow
@settings(MANY, max_examples=8)
@given(st.data())
def test_mutated_runs_are_reported_or_refused_in_one_line(tmp_path_factory, capsys, data):
    folder = tmp_path_factory.mktemp("odd")
    two_runs(folder)
    for name in data.draw(st.sampled_from([["one"], ["two"], ["one", "two"], ["one", "one"]])):
        spoil(data, folder / name)
    fits(["report", str(folder), f"--out={folder / 'report'}", "--json"], capsys)


STUDY: dict[str, Any] = {
    "policy": {"model": "arithmetic"},
    "data": {"train": "arithmetic", "size": 64, "eval_size": 8},
    "train": {"steps": 2, "prompts_per_step": 8},
    "compare": {
        "seeds": [0, 1],
        "tuning_seeds": [7],
        "learning_rates": [1e-3, 3e-3],
        "levels": [0.0],
        "meter": ["end"],
        "exclude": ["none/*"],
        "tasks": {"arithmetic": {}},
        "algorithms": {"grpo": {"algorithm": {"name": "grpo"}}},
        "arms": {
            "uniform": {"allocate.allocator": "uniform", "estimate.mode": "none"},
            "online": {"estimate.mode": "online"},
        },
    },
}


@pytest.mark.slow
@MANY
@given(st.data())
def test_mutated_studies_are_read_or_refused_in_one_line(tmp_path_factory, capsys, data):
    path = tmp_path_factory.mktemp("odd") / "study.yaml"
    content = json.dumps(mutated(data, STUDY)).encode()
    path.write_bytes(content if data.draw(st.integers(0, 4)) else cut(data, content))
    fits(["compare", str(path), "--dry-run"], capsys)


def results(folder: Path) -> None:
    """What ``dibs compare`` leaves of two arms and two seeds."""
    names = {"task": "arithmetic", "algorithm": "grpo"}
    lines = [
        {**names, "arm": arm, "seed": seed}
        | {cost: [0.0, 50.0 * rate, 100.0 * rate] for cost in COSTS}
        | {"steps": [0, 1, 2]}
        | {score: [0.1, 0.4 + 0.1 * seed, 0.8] for score in SCORES}
        for arm, rate in (("uniform", 1), ("online", 2))
        for seed in (0, 1)
    ]
    write_lines(folder / "curves.jsonl", lines)
    rows = [
        {
            **names,
            **{"arm": arm, "reference": "uniform", "seeds": [0, 1], "failures": {}},
            **{"learning_rate": 1e-3, "learning_rate_at_edge": False, "optimizer_updates": 2.0},
            **{"value_after": 0.8, "value_after_seeds": [0.8, 0.8], "rollouts": 10.0},
            "targets": [{"score": "accuracy", "share": 0.5, "level": None}],
            "variance": {"end": {"gain": 1.2, "kept": 1.0, "noise_scale": None}},
        }
        for arm in ("uniform", "online")
    ]
    (folder / "results.json").write_text(to_json(rows))


@pytest.mark.slow
@MANY
@given(st.data())
def test_mutated_results_are_compared_or_refused_in_one_line(tmp_path_factory, capsys, data):
    folder = tmp_path_factory.mktemp("odd")
    results(folder)
    spoil(data, folder)
    fits(["compare", str(folder), *data.draw(st.sampled_from([[], ["--json"]]))], capsys)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_runs, ["report", "{}", "--out={}/report"]),
        (results, ["compare", "{}"]),
        (
            lambda folder: (folder / "study.yaml").write_text(yaml.safe_dump(STUDY)),
            ["compare", "{}/study.yaml", "--dry-run"],
        ),
    ],
    ids=["runs", "results", "study"],
)
def test_what_is_mutated_is_whole_before(tmp_path, make: Callable[[Path], Any], words):
    make(tmp_path)
    assert main([word.format(tmp_path) for word in words]) == 0
