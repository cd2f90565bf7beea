"""A report that is watched: it follows its runs, and ends with them or at Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dibs.cli import main
from dibs.report.write import watch_report
from run_folders import finish, make_run


def test_watch_may_stand_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--watch", "runs/mine"]) == 2
    assert "nothing to report: runs/mine" in capsys.readouterr().err


def test_watching_ends_by_itself_when_all_runs_are_finished(tmp_path, monkeypatch):
    source = make_run(tmp_path / "whole", steps=3)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    run = tmp_path / "run"
    shutil.copytree(source, run)
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text("")
    told, pages = [], []

    def go_on(seconds: float) -> None:
        """What the run does while the report waits: nothing at first, then a step, then the end."""
        assert seconds == 5
        told.append(seconds)
        if len(told) == 2:
            (run / "metrics.jsonl").write_text("".join(lines[:3]))
        if len(told) == 5:
            (run / "metrics.jsonl").write_text("".join(lines))
            finish(run, 3)

    monkeypatch.setattr(time, "sleep", go_on)

    def look(written: dict) -> None:
        pages.append(Path(written["page"]).read_text())
        assert written["figures"] == []

    last = watch_report([run], tmp_path / "out", 5, look)
    assert len(told) == 5
    assert len(pages) == 1  # the run went on once
    assert "load this page again every 5 s" in pages[0]
    assert "load this page again" not in Path(last["page"]).read_text()
    assert last["runs"][0]["state"] == "finished"
    assert len(last["figures"]) > 10


@pytest.mark.slow
def test_ctrl_c_leaves_a_whole_page_that_does_not_reload(tmp_path):
    make_run(tmp_path / "run", finished=False)
    command = [sys.executable, "-m", "dibs", "report", str(tmp_path / "run"), "--watch", "60"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("wrote ")
        page = tmp_path / "run" / "report" / "index.html"
        assert "load this page again" in page.read_text()
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert errors == "dibs report: interrupted\n"
    assert "load this page again" not in page.read_text()
    assert page.read_text().rstrip().endswith("</html>")
