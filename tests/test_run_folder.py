"""Run folders: nothing half-written, nothing lost that is not ours."""

from __future__ import annotations

import json

import pytest

from dibs.checkpoint import RunFolder, to_json
from dibs.config_file import load_config
from dibs.types import InputError


def config(path, **more):
    return load_config(None, {"output_dir": str(path), **more})


def test_a_folder_that_holds_a_run_is_refused_unless_overwritten(tmp_path):
    out = tmp_path / "run"
    folder = RunFolder.create(config(out))
    folder.append("metrics.jsonl", {"step": 1})
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="already holds a run; give another or set overwrite"):
        RunFolder.create(config(out))
    assert (out / "metrics.jsonl").read_text() == '{"step": 1}\n'
    RunFolder.create(config(out, overwrite="true"))
    assert (out / "metrics.jsonl").read_text() == ""
    assert (out / "mine.txt").read_text() == "keep me"


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; give a folder"):
        RunFolder.create(config(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write to output_dir .*Not a directory"):
        RunFolder.create(config(tmp_path / "file" / "below"))


def test_checkpoints_are_whole_and_pruned(tmp_path, policy, monkeypatch):
    folder = RunFolder.create(config(tmp_path / "run"))
    assert folder.last_checkpoint() is None
    for step in (0, 5, 10, 100):
        folder.save_checkpoint(policy, {"step": step}, keep=2)
    found = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert found == ["step-000010", "step-000100"]
    assert json.loads((folder.last_checkpoint() / "state.json").read_text()) == {"step": 100}

    def fails(path):
        (path / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(policy, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        folder.save_checkpoint(policy, {"step": 200}, keep=2)
    assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == found


def test_json_is_strict():
    value = {"a": float("nan"), "b": [1.5, float("inf")], "c": (True, "é")}
    assert to_json(value) == '{"a": null, "b": [1.5, null], "c": [true, "é"]}'
