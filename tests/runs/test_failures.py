"""What fails around a run: trackers, servers, a full disk, a damaged summary."""

from __future__ import annotations

import os
import signal

import pytest

from dibs.cli import main
from dibs.rollouts.source import RolloutSource
from dibs.runs.folder import RunFolder
from dibs.types import InputError
from tiny_runs import options, run, untimed


def test_a_tracker_that_fails_is_left_out_with_a_warning(tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    logged = TensorBoardTracker.log

    def log(self, values, step=None, **more):
        if step == 1:
            raise ConnectionError("no route to the tracker")
        logged(self, values, step=step, **more)

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    words = options(tmp_path / "run", "--tracking.trackers=[tensorboard]")
    assert main(["train", *words]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "tracker tensorboard failed (ConnectionError: no route to the tracker)" in told
    assert told.count("goes on without it") == 1
    assert len(untimed(tmp_path / "run")) == 3


def test_a_tracker_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def start(self):
        raise RuntimeError("log in first")

    monkeypatch.setattr(TensorBoardTracker, "start", start)
    words = options(tmp_path / "run", "--tracking.trackers=[tensorboard]")
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "tensorboard cannot be opened: RuntimeError: log in first" in line


def test_what_is_wrong_with_a_server_is_not_blamed_on_the_folder(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(RolloutSource, "draw", fails)
    with pytest.raises(InputError, match=r"stopped by ConnectionResetError: .*reset by peer"):
        run(tmp_path / "run")


@pytest.mark.parametrize("name", ["append", "write_summary", "save_final"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, name):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, name, full)
    with pytest.raises(InputError, match=r"cannot write to .*run: No space left on device; "):
        run(tmp_path / "run", "--train.steps=1")


def test_a_signal_after_the_last_step_does_not_lose_the_summary(tmp_path, monkeypatch):
    write = RunFolder.write_summary

    def interrupted(folder, summary):
        os.kill(os.getpid(), signal.SIGINT)
        write(folder, summary)

    monkeypatch.setattr(RunFolder, "write_summary", interrupted)
    run(tmp_path / "run", "--train.steps=1")
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("content", ['{"steps": 2', "[]", '{"steps": 2}', "\u00ff"])
def test_a_damaged_summary_is_one_line(tmp_path, content):
    folder = RunFolder(tmp_path)
    assert folder.summary() is None
    (tmp_path / "summary.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"summary\.json is damaged; remove it and go on"):
        folder.summary()
