"""dibs push against a stand-in of the hub: whole after interruptions, nothing private, clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from dibs.cli import main
from dibs.config.secrets import HIDDEN
from dibs.runs.versions import session_line
from dibs.sharing.push import prepare
from hub_server import HubServer, hub_in_place
from run_folders import NASTY, make_run, write_lines

WEIGHTS = bytes(range(256)) * 400
SECRET = "correct-horse-battery"  # pragma: allowlist secret
SUMMARY = {
    "algorithm": "raft++",
    "objective": "log_likelihood",
    "baseline": "none",
    "estimator": "self_normalized",
    "allocator": "min_variance",
    "seed": 3,
    "steps": 4,
    "optimizer_updates": 16,
    "rollouts": 384,
    "pilot_rollouts": 192,
    "completion_tokens": 3456,
    "wall_seconds": 9.0,
    "accuracy_before": 0.5,
    "accuracy_before_low": 0.47,
    "accuracy_before_high": 0.53,
    "accuracy_after": 0.8125,
    "accuracy_after_low": 0.7512,
    "accuracy_after_high": 0.8611,
    "pass_at_k_before": 0.75,
    "pass_at_k_after": 0.9,
}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run whose completions, prompts and addresses are easy to find again."""
    run = make_run(
        tmp_path / "somebody" / "run",
        completion="our own completion",
        seed=3,
        policy={"model": "Qwen/Qwen2.5-Math-1.5B"},
        data={"train": "/home/somebody/fractions.jsonl", "template": "boxed"},
        sampling={
            "servers": [f"http://me:{SECRET}@10.1.2.3"],
            "server_model": "/home/somebody/models/base",
            "temperature": 1.0,
        },
        evaluate={"num_generations": 4, "temperature": 1.0},
        tracking={"notes": SECRET},
    )
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    model = run / "model"
    (model / ".cache").mkdir(parents=True)
    (model / ".cache" / "left").write_text("over")
    (model / "README.md").write_text("another card")
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("[]")
    (model / "model-1.safetensors").write_bytes(WEIGHTS)
    (model / "model-2.safetensors").write_bytes(WEIGHTS[::-1])
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    server = hub_in_place(monkeypatch, tmp_path)
    yield server
    server.close()


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that ends with status 2."""
    assert main(["push", *map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dibs ")]
    assert len(lines) == 1
    return lines[0]


def test_a_run_is_uploaded_in_one_commit(finished, hub, capsys):
    assert main(["push", str(finished), "me/fractions"]) == 0
    assert f"6 files, 0.2 MB, are at {hub.address}/me/fractions" in capsys.readouterr().out
    (commit,) = hub.commits["me/fractions"]
    assert sorted(commit) == [
        "README.md",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "tokenizer.json",
        "training/config.yaml",
    ]
    assert commit["model-1.safetensors"] == WEIGHTS
    assert commit["README.md"].startswith(b"---\nlibrary_name: transformers\n")
    assert hub.private == {"me/fractions": False}


def test_what_is_private_stays_here_unless_asked(finished, hub):
    private = [b"our own completion", b"A+1=", b"/home/somebody", b"10.1.2.3", SECRET.encode()]
    assert main(["push", str(finished), "me/plain"]) == 0
    everything = b"".join(hub.files("me/plain").values())
    assert [each for each in private if each in everything] == []
    config = yaml.safe_load(hub.files("me/plain")["training/config.yaml"])
    assert config["data"]["train"] == "fractions.jsonl"
    assert config["sampling"] == {"server_model": "base", "temperature": 1.0}
    assert not {"output_dir", "tracking"} & {*config}
    assert main(["push", str(finished), "me/all", "--with-completions", "--private"]) == 0
    assert hub.private["me/all"]
    files = hub.files("me/all")
    assert b"our own completion" in files["training/samples.jsonl"]
    assert files["training/allocations.jsonl"] == (finished / "allocations.jsonl").read_bytes()


def test_an_upload_that_is_interrupted_twice_ends_whole(finished, hub, tmp_path, capsys):
    """Killed while it sends the second of two files of weights, then cut off at the commit."""
    words = [sys.executable, "-m", "dibs", "push", str(finished), "me/fractions"]
    sending, dead = threading.Event(), threading.Event()
    puts: list[str] = []

    def hold(what: str) -> int | None:
        if what == "lfs":
            puts.append(what)
            if len(puts) == 2:
                sending.set()
                dead.wait(60)
                return 0
        return None

    hub.refuse = hold
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hub"),
    }
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    assert sending.wait(60)
    while not hub.sent:
        assert process.poll() is None
    process.kill()
    process.wait()
    dead.set()
    assert hub.commits["me/fractions"] == []

    hub.refuse = lambda what: 0 if what == "commit" else None
    error = error_of(capsys, finished, "me/fractions")
    assert error.startswith("dibs push: the upload to me/fractions stopped (")
    assert error.endswith("; the same command goes on")
    assert hub.commits["me/fractions"] == []

    hub.refuse = lambda _: None
    assert main(["push", str(finished), "me/fractions"]) == 0
    (commit,) = hub.commits["me/fractions"]
    assert len(commit) == 6
    assert commit["model-1.safetensors"] + commit["model-2.safetensors"] == WEIGHTS + WEIGHTS[::-1]
    # Each file of weights crossed the line once in all three attempts.
    assert hub.sent == [len(WEIGHTS)] * 2


def test_a_card_of_one_update(finished, capsys):
    path = finished / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"optimizer_updates": 1}))
    assert main(["push", str(finished), "me/fractions", "--dry-run", "--json"]) == 0
    assert "1 update from 384 rollouts." in json.loads(capsys.readouterr().out)["card"]


def test_the_card_names_what_was_done_and_reached(finished, capsys):
    assert main(["push", str(finished), "me/fractions", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    text = told["card"]
    for line in (
        "Qwen/Qwen2.5-Math-1.5B trained with DIBS 0.1.0 on fractions.jsonl: raft++ with min_variance "
        "counts (8 completions a prompt on average), 16 updates from 384 rollouts.",
        "| before | 0.500 (0.470 to 0.530) | 0.750 |",
        "| after | 0.812 (0.751 to 0.861) | 0.900 |",
        "Measured on prompts held out of fractions.jsonl, 4 completions a prompt at temperature 1.0.",
        "| 0 | 0 | 0.500 (0.470 to 0.530) |",
        "| rollouts | 384, of them 192 pilots |",
        "| statistics of prompts | pilot |",
        "| seed | 3 |",
        "| dibs | 0.1.0 |",
    ):
        assert line in text
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen2.5-Math-1.5B"
    assert "datasets" not in data
    (metric,) = data["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.8125)
    assert metric["name"] == "avg@4, 95% 0.751 to 0.861"
    assert sum(each["bytes"] for each in told["files"]) == told["bytes"]


def test_a_dry_run_sends_nothing(finished, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(finished), "fractions", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "# fractions\n" in shown
    assert f"{len(WEIGHTS):,}  model-1.safetensors" in shown
    assert hub.commits == {}


def test_texts_of_a_run_end_no_cell_and_open_no_tag(tmp_path, capsys):
    run = make_run(
        tmp_path / "run",
        policy={"model": NASTY},
        data={"train": f"{NASTY}|x", "template": f"---\n```\n{NASTY}"},
        evaluate={"num_generations": "[x](http://y)"},
    )
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert main(["push", str(run), "me/odd", "--dry-run", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["card"]
    body = ModelCard(text).content.split("\n---\n", 1)[1]
    assert "<script" not in "\n".join(
        line for line in body.splitlines() if not line.startswith("    ")
    )
    assert "[x](" not in body.replace("\\[x](", "")
    rows = [line for line in body.splitlines() if line.startswith("| data |")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [3]


def test_the_card_of_an_old_run_hides_what_its_configuration_still_holds(tmp_path, capsys):
    """Runs of before secrets were hidden have them in config.yaml, and the card shows the template."""
    run = make_run(
        tmp_path / "run",
        policy={"model": f"https://me:{SECRET}@example.org/model"},
        data={"train": "gsm8k", "template": f"see https://me:{SECRET}@example.org {{prompt}}"},
    )
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert main(["push", str(run), "me/old", "--dry-run"]) == 0
    card = capsys.readouterr().out
    assert f"see https://{HIDDEN}@example.org {{prompt}}" in card
    assert SECRET not in card


def test_paths_that_look_like_hub_ids_are_none(tmp_path, monkeypatch, capsys):
    """The run recorded that they were folders; they are not where push is called."""
    (tmp_path / "private/customers").mkdir(parents=True)
    (tmp_path / "gsm8k").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = {"data.train": "private/customers", "data.eval": "gsm8k", "policy.model": "a/base"}
    line = session_line(0, "cpu", 1, {**sources, "sampling.server_model": None})
    assert line["local"] == ["data.train"]
    data = {"train": "private/customers", "eval": "gsm8k"}
    run = make_run(tmp_path / "run", data=data, policy={"model": "a/base"})
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def card() -> Any:
        return ModelCard(prepare(run, "me/run", False).card).data

    assert card().datasets == ["private/customers"]
    write_lines(run / "sessions.jsonl", [line, {**line, "local": "damaged"}])
    assert (card().base_model, card().datasets) == ("a/base", None)
    assert card().eval_results[0].dataset_type == "openai/gsm8k"
    share = prepare(run, "me/run", False)
    assert share.run.setting("data.train") == "customers"
    assert "private" not in share.card
    write_lines(run / "sessions.jsonl", [{**line, "local": ["policy.model"]}])
    assert card().base_model is None


def test_a_run_without_numbers_still_has_a_card(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    for name in ("config.yaml", "sessions.jsonl"):
        (run / name).unlink()
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert main(["push", str(run), "me/odd", "--dry-run"]) == 0
    assert "| rollouts | unknown, of them unknown pilots |" in capsys.readouterr().out


def test_unusable_runs_and_names_are_one_line(finished, tmp_path, capsys):
    assert "does not exist" in error_of(capsys, tmp_path / "none", "me/x")
    running = make_run(tmp_path / "running", finished=False)
    error = error_of(capsys, running, "me/x")
    assert "holds no finished run (at step 4 of 4" in error
    assert "go on with dibs train --resume" in error
    without = make_run(tmp_path / "without")
    assert "holds no model: " in error_of(capsys, without, "me/x")
    for name in ("me/my/x", "me/..", "a b", "me/"):
        assert "is no name of a repository" in error_of(capsys, finished, name)


def test_what_the_hub_refuses_is_one_line(finished, hub, monkeypatch, capsys):
    def refuses(status: int) -> str:
        hub.refuse = lambda _: status
        return error_of(capsys, finished, "them/x")

    error = refuses(403)
    assert "the hub refuses them/x (403: " in error
    assert "take one with write access" in error
    assert "no such user or organization" in refuses(404)
    hub.refuse = lambda what: 400 if what == "commit" else None
    assert "the hub refuses them/x (400: no commit)" in error_of(capsys, finished, "them/x")
    hub.refuse = lambda _: None
    hub.commits["me/public"] = []
    hub.private["me/public"] = False
    error = error_of(capsys, finished, "me/public", "--private")
    assert "me/public exists already and is public" in error
    assert hub.commits["me/public"] == []
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "the token is not valid" in error_of(capsys, finished, "me/x")
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token of the hub; run hf auth login" in error_of(capsys, finished, "me/x")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of(capsys, finished, "me/x")
