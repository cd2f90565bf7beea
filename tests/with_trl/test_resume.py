"""Checkpoints: a run that was killed goes on with the same online state."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import SCRIPT, launched

from dibs.types import InputError
from training import UNIFORM, build, run

pytestmark = pytest.mark.trl
ONLINE = {"objective": "expected_reward", "baseline": "leave_one_out", "half_life": 5}
FOLLOWING = {**ONLINE, "allocator": "training:rarer"}
"""An allocator that follows what earlier steps saw, also where the evidence is too thin for a gain."""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_with_the_same_online_state(byte_model, tmp_path, processes):
    settings = {
        "model": str(byte_model),
        "dibs": FOLLOWING,
        # TRL's shuffle starts anew in a resumed run, and later epochs get the order of earlier ones.
        "grpo": {
            "max_steps": 6,
            "save_strategy": "steps",
            "save_steps": 3,
            "shuffle_dataset": False,
        },
    }
    whole = launched({**settings, "folder": str(tmp_path / "whole")}, processes)
    folder = tmp_path / "killed"
    assert launched({**settings, "folder": str(folder), "kill_at": 5}, processes) == []
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    saved = [
        json.loads((each / "checkpoint-3" / "dibs_state.json").read_text())
        for each in (tmp_path / "whole", folder)
    ]
    assert saved[0] == saved[1]

    resume = {**settings, "folder": str(folder), "resume": str(folder / "checkpoint-3")}
    resumed = launched(resume, processes)
    for before, after in zip(whole, resumed, strict=True):
        assert after["counts"] == before["counts"][3:]
        assert [each["ids"] for each in after["calls"]] == [
            each["ids"] for each in before["calls"][3:]
        ]
        assert after["state"] == before["state"]
        assert after["rollouts"] == before["rollouts"]
    losses = [[each["loss"] for each in told[0]["log"]] for told in (whole, resumed)]
    assert losses[1][-3:] == pytest.approx(losses[0][-3:], abs=1e-6)
    assert any(len(set(counts)) > 1 for counts in resumed[0]["counts"])


def test_the_kill_was_a_sigkill(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "dibs": UNIFORM,
        "kill_at": 1,
    }
    given = tmp_path / "settings.json"
    given.write_text(json.dumps(settings))
    command = [sys.executable, str(SCRIPT), str(given), str(tmp_path / "told")]
    done = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_checkpoints_without_our_state_are_refused_in_one_line(byte_model, tmp_path):
    settings = {
        "model": str(byte_model),
        "folder": str(tmp_path),
        "grpo": {"max_steps": 1, "save_strategy": "steps", "save_steps": 1},
    }
    run(settings)
    checkpoint = Path(tmp_path / "checkpoint-1")
    ours = {**settings, "dibs": ONLINE, "grpo": {**settings["grpo"], "max_steps": 2}}
    with pytest.raises(InputError, match=r"has no dibs_state\.json") as caught:
        build(ours)[0].train(resume_from_checkpoint=str(checkpoint))
    assert "\n" not in str(caught.value)
    (checkpoint / "dibs_state.json").write_text('{"rollouts": 1, "bud')
    with pytest.raises(InputError, match=r"dibs_state.json is damaged .*another checkpoint"):
        build(ours)[0].train(resume_from_checkpoint=str(checkpoint))
    shutil.rmtree(checkpoint)
