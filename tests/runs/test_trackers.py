"""Trackers: names, groups, tags and notes, files inside the run folder, and no secrets."""

from __future__ import annotations

import os
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from dibs.config import Config
from dibs.config.changes import changed_keys
from dibs.config.load import load_config
from dibs.config.secrets import HIDDEN, without_secrets
from dibs.runs.folder import RunFolder
from dibs.runs.trackers import Trackers, _described
from dibs.types import InputError

PASSWORD = "correct-horse-battery"  # pragma: allowlist secret
WITH_PASSWORD = "http://me:pass@host:8000/v1"  # pragma: allowlist secret
TRACKING = {
    "project": "fractions",
    "run_name": "seed-3",
    "group": "uniform",
    "tags": ["paper", "small"],
    "notes": "counts held equal",
}


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder beside the current folder, which no tracker may write to."""
    (tmp_path / "here").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "run"


def config(name: str, folder: Path) -> Config:
    return Config.model_validate(
        {"output_dir": str(folder), "tracking": {"trackers": [name], **TRACKING}}
    )


def logged(name: str, folder: Path) -> dict[str, str]:
    """What the tracker calls a run of two steps, the second after it was resumed."""
    trackers = Trackers(config(name, folder), folder)
    trackers.log({"step": 0, "accuracy": 0.5})
    trackers.close()
    again = Trackers(config(name, folder), folder, trackers.run_ids, 1)
    again.log({"step": 1, "accuracy": 0.75})
    again.close()
    assert again.run_ids == trackers.run_ids
    assert list(Path.cwd().iterdir()) == []
    return trackers.run_ids


def test_wandb_writes_inside_the_run_folder(run_folder, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged("wandb", run_folder)
    runs = list((run_folder / "trackers" / "wandb").glob("offline-run-*"))
    assert runs
    stored = b"".join(file.read_bytes() for run in runs for file in run.rglob("run-*.wandb"))
    for text in ("fractions", "seed-3", "uniform", "paper", "counts held equal"):
        assert text.encode() in stored


def test_trackio_writes_inside_the_run_folder(run_folder):
    if not find_spec("trackio"):  # which takes its folder when it is imported
        pytest.skip("trackio is not installed")
    assert logged("trackio", run_folder) == {"trackio": "seed-3"}
    assert list((run_folder / "trackers" / "trackio").glob("fractions*"))
    assert "TRACKIO_DIR" not in os.environ


def test_mlflow_writes_inside_the_run_folder(run_folder):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="MLflow stores nothing without it")
    (run_id,) = logged("mlflow", run_folder).values()
    with sqlite3.connect(run_folder / "trackers" / "mlflow.db") as database:
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)))
        values = list(database.execute("select step, value from metrics where key = 'accuracy'"))
    assert tags["mlflow.runName"] == "seed-3"
    assert tags["mlflow.note.content"] == "counts held equal"
    assert (tags["group"], tags["paper"], tags["small"]) == ("uniform", "true", "true")
    assert sorted(values) == [(0, 0.5), (1, 0.75)]


def described(name: str, **tracking: Any) -> dict[str, Any]:
    own = {"output_dir": "runs/seed-7", "tracking": tracking}
    return _described(name, Config.model_validate(own), Path("place"))


def test_a_run_is_named_after_its_folder():
    assert described("wandb") == {"name": "seed-7", "dir": "place"}
    assert described("trackio") == {"name": "seed-7"}
    assert described("mlflow")["run_name"] == "seed-7"
    assert described("tensorboard", run_name="other", group="all") == {}


def test_each_tracker_gets_what_it_has_a_place_for():
    assert described("wandb", **TRACKING) == {
        "name": "seed-3",
        "dir": "place",
        "group": "uniform",
        "tags": ("paper", "small"),
        "notes": "counts held equal",
    }
    assert described("trackio", **TRACKING) == {"name": "seed-3", "group": "uniform"}
    mlflow = described("mlflow", **TRACKING)
    assert mlflow["tags"] == {"paper": "true", "small": "true", "group": "uniform"}
    assert mlflow["description"] == "counts held equal"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (WITH_PASSWORD, f"http://{HIDDEN}@host:8000/v1"),
        ("https://host/?write_token=abc&step=2", f"https://host/?write_token={HIDDEN}&step=2"),
        ("https://host/?API-KEY=abc", f"https://host/?API-KEY={HIDDEN}"),
        (
            "https://b/o?X-Amz-Credential=a/b&X-Amz-Signature=0f&sig=1",
            f"https://b/o?X-Amz-Credential={HIDDEN}&X-Amz-Signature={HIDDEN}&sig={HIDDEN}",
        ),
        ("Authorization: Bearer abc.def-123=", f"Authorization: Bearer {HIDDEN}"),
        (
            "https://host/?design=1 of a standard bearer of news",
            "https://host/?design=1 of a standard bearer of news",
        ),
        (f"use hf_{'a1' * 17}.", f"use {HIDDEN}."),
        (f"before {PASSWORD} after", f"before {HIDDEN} after"),
        ("a@b.c and http://host/@x", "a@b.c and http://host/@x"),
        ("arithmetic", "arithmetic"),
    ],
)
def test_secrets_are_hidden(text, shown, monkeypatch):
    monkeypatch.setenv("OUR_SERVICE_PASSWORD", PASSWORD)
    monkeypatch.setenv("SHORT_KEY", "arithmetic")
    assert without_secrets({"a": [text], "b": (1, None, 0.5)}) == {
        "a": [shown],
        "b": [1, None, 0.5],
    }


def test_no_secret_reaches_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", PASSWORD)
    keys = {
        "output_dir": str(tmp_path),
        "data.train": f"{PASSWORD}.jsonl",
        "tracking.notes": f"log in with {PASSWORD}",
        "tracking.trackers": "[tensorboard]",
        "sampling.engine": "vllm_server",
        "sampling.servers": f"[http://user:{PASSWORD}@127.0.0.1:8000]",
    }
    whole = load_config(None, keys)
    assert PASSWORD in whole.sampling.servers[0]
    RunFolder(tmp_path).write_config(whole)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["sampling"]["servers"] == [f"http://{HIDDEN}@127.0.0.1:8000"]
    assert changed_keys(whole) == []
    with pytest.raises(InputError, match=r"config.yaml: .* holds \*\*\*secret\*\*\*, which stands"):
        load_config(tmp_path / "config.yaml")
    trackers = Trackers(whole, tmp_path)
    trackers.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
