"""Run folders: nothing half-written, nothing lost that is not ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from dibs.config import Config
from dibs.config.changes import changed_keys
from dibs.config.load import load_config
from dibs.files import read_lines, to_json, whole_folder
from dibs.model.policy import Policy
from dibs.model.warm_start import build_tokenizer
from dibs.runs.folder import Plan, RunFolder
from dibs.types import InputError

STATE = {"random": torch.arange(7, dtype=torch.uint8)}


def config(path, **more):
    return load_config(None, {"output_dir": str(path), **more})


def begun(config: Config) -> RunFolder:
    """The folder of a run that begins."""
    folder = RunFolder(config.output_dir)
    folder.begin(config, folder.open(config))
    return folder


def test_a_folder_that_holds_a_run_is_refused_unless_overwritten(tmp_path):
    out = tmp_path / "run"
    folder = begun(config(out))
    folder.append("metrics.jsonl", {"step": 1})
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="already holds a run; give another, go on with --resume"):
        begun(config(out))
    with pytest.raises(InputError, match=rf"in use by process {os.getpid()}, started 20\d\d-"):
        begun(config(out, overwrite="true"))
    folder.unlock()
    assert (out / "metrics.jsonl").read_text() == '{"step": 1}\n'
    begun(config(out, overwrite="true"))
    assert (out / "metrics.jsonl").read_text() == ""
    assert (out / "mine.txt").read_text() == "keep me"


def test_a_run_that_ended_before_its_first_line_blocks_nothing(tmp_path):
    """One that has a line does, and so does a file of the user's."""
    out = tmp_path / "run"
    begun(config(out)).append("sessions.jsonl", {"step": 0})
    again = begun(config(out))
    assert not (out / "sessions.jsonl").exists()
    again.unlock()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml").write_text("seed: 3\n")
    with pytest.raises(InputError, match="already holds a run"):
        begun(config(mine))
    assert (mine / "config.yaml").read_text() == "seed: 3\n"


def test_a_key_that_no_configuration_has_is_named_when_a_run_is_resumed(tmp_path):
    folder = begun(config(tmp_path / "run"))
    folder.unlock()
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text() + "sede: 1\n")
    with pytest.raises(InputError, match=r"config.yaml has keys that no configuration has: sede"):
        RunFolder(tmp_path / "run").open(config(tmp_path / "run", resume="yes"))


def test_the_configuration_that_a_run_leaves_can_be_run_anew(tmp_path):
    folder = begun(config(tmp_path / "run", overwrite="true"))
    folder.write_config(config(tmp_path / "run", resume="yes", allow_changes="true"))
    left = load_config(tmp_path / "run" / "config.yaml")
    assert (left.resume, left.overwrite, left.allow_changes) == ("no", False, False)
    begun(left.model_copy(update={"output_dir": tmp_path / "other"}))


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(tmp_path):
    """Root may write where permissions do not allow it, so it is tried."""
    with pytest.raises(InputError, match=r"cannot write to output_dir /proc/run: .* in /proc"):
        RunFolder(Path("/proc/run")).open(config(Path("/proc/run")))
    RunFolder(tmp_path / "run").open(config(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; give a folder"):
        begun(config(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write to output_dir .*Not a directory"):
        begun(config(tmp_path / "file" / "below"))


def test_checkpoints_are_ordered_by_number(tmp_path, policy):
    folder = begun(config(tmp_path / "run"))
    for step in (999_999, 1_000_000, 10_000_000):
        folder.save_checkpoint(policy, {"step": step, "accuracy": 0.0}, STATE, keep=2)
    newest, (whole, _) = folder.checkpoints.newest(), folder.checkpoints.newest_whole()
    assert newest is not None
    assert whole is not None
    assert newest.name == "step-10000000"
    assert whole.step == 10_000_000
    names = {path.name for path in (folder.path / "checkpoints").iterdir()}
    assert names == {"step-1000000", "step-10000000"}


def test_weights_that_are_saved_under_other_names_are_loaded(tmp_path):
    """A mixture of experts is written expert by expert, and kept as one tensor in memory."""
    tokenizer = build_tokenizer()
    shape = Qwen2MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
    )
    saved, fresh = (Policy(Qwen2MoeForCausalLM(shape), tokenizer) for _ in range(2))
    folder = begun(config(tmp_path / "run"))
    folder.save_checkpoint(saved, {"step": 1, "accuracy": None}, STATE, keep=1)
    whole, _ = folder.checkpoints.newest_whole()
    assert whole is not None
    fresh.load(whole.folder)
    for name, weights in saved.model.state_dict().items():
        assert torch.equal(weights, fresh.model.state_dict()[name]), name


def test_checkpoints_are_whole_and_pruned(tmp_path, policy, monkeypatch):
    folder = begun(config(tmp_path / "run"))
    assert folder.checkpoints.newest() is None
    for step in (0, 5, 10, 100):
        folder.save_checkpoint(policy, {"step": step, "accuracy": 1 / (step + 1)}, STATE, keep=2)
    found = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert found == ["step-000000", "step-000010", "step-000100"]  # the best, and the newest two
    whole, broken = folder.checkpoints.newest_whole()
    assert whole is not None
    assert whole.facts == {"step": 100, "accuracy": 1 / 101}
    assert torch.equal(whole.trainer_state()["random"], STATE["random"])
    assert broken == []

    def fails(path):
        (path / "half").touch()
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(policy, "save", fails)
    with pytest.raises(
        InputError, match=r"cannot be written: disk full; .*step-000100 is whole; make"
    ):
        folder.save_checkpoint(policy, {"step": 200, "accuracy": 0}, STATE, keep=2)
    assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == found


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "trainer.pt"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "removed"])
def test_a_damaged_checkpoint_is_noticed_and_named(tmp_path, policy, name, damage):
    folder = begun(config(tmp_path / "run"))
    for step in (1, 2):
        folder.save_checkpoint(policy, {"step": step, "accuracy": None}, STATE, keep=2)
    newest = folder.checkpoints.newest()
    assert newest is not None
    path = newest / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        cut = {"cut": len(content) - 1, "emptied": 0, "flipped": len(content)}[damage]
        path.write_bytes(content[:cut])
    whole, (told,) = folder.checkpoints.newest_whole()
    assert whole is not None
    assert whole.step == 1
    assert f"step-000002 is broken: {name} is " in told
    (folder.path / "checkpoints" / "step-000001" / "checksums.json").write_text("{}")
    assert folder.checkpoints.newest_whole()[0] is None


def test_lines_of_later_steps_are_cut_back(tmp_path):
    folder = begun(config(tmp_path / "run"))
    for step in range(4):
        folder.append("metrics.jsonl", {"step": step, "text": "a\u2028b\x85c\u00e9"})
    path = folder.path / "metrics.jsonl"
    with path.open("ab") as lines:
        lines.write('{"step": 2, "cut off within \u00e9'.encode()[:-1])
    folder.cut_back(2)
    assert [folder.metrics(i)["step"] for i in range(3)] == [0, 1, 2]
    assert folder.metrics(1)["text"] == "a\u2028b\x85c\u00e9"
    assert path.read_bytes().count(b"\n") == 3
    with pytest.raises(InputError, match="does not hold steps 0 to 3"):
        folder.cut_back(3)


def test_a_torn_line_of_a_session_does_not_damage_the_next(tmp_path, policy):
    folder = begun(config(tmp_path / "run"))
    folder.append("metrics.jsonl", {"step": 0})
    folder.append("sessions.jsonl", {"step": 0, "device": "cpu"})
    with (folder.path / "sessions.jsonl").open("a") as lines:
        lines.write('{"step": 0, "dev')
    folder.cut_back(0)
    folder.append("sessions.jsonl", {"step": 0, "device": "later"})
    kept = [record["device"] for record in read_lines(folder.path / "sessions.jsonl")]
    assert kept == ["cpu", "later"]


def test_a_finished_run_that_goes_on_is_not_finished(tmp_path, policy):
    folder = begun(config(tmp_path / "run"))
    folder.append("metrics.jsonl", {"step": 0})
    folder.save_checkpoint(policy, {"step": 0, "accuracy": 0.1}, STATE, keep=2)
    folder.write_summary({"steps": 0})
    found, _ = folder.checkpoints.newest_whole()
    folder.begin(config(tmp_path / "run"), Plan(found))
    assert not (folder.path / "summary.json").exists()


def test_broken_checkpoints_do_not_count(tmp_path, policy):
    folder = begun(config(tmp_path / "run"))
    for step, accuracy in ((2, 0.1), (6, 0.9)):
        folder.save_checkpoint(policy, {"step": step, "accuracy": accuracy}, STATE, keep=2)
    newest = folder.checkpoints.newest()
    assert newest is not None
    (newest / "trainer.pt").write_bytes(b"")
    found, _ = folder.checkpoints.newest_whole()
    assert found is not None
    folder.checkpoints.set_aside_newer(found.step)
    folder.save_checkpoint(policy, {"step": 4, "accuracy": 0.2}, STATE, keep=1)
    found, broken = folder.checkpoints.newest_whole()
    assert found is not None
    assert (found.step, broken) == (4, [])


def test_a_key_that_the_earlier_version_did_not_have_is_no_change(tmp_path):
    begun(config(tmp_path / "run"))
    path = tmp_path / "run" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    del written["policy"]["share_prompts"]
    path.write_text(yaml.safe_dump(written))
    assert changed_keys(config(tmp_path / "run")) == []
    (changed,) = changed_keys(config(tmp_path / "run", **{"policy.share_prompts": "never"}))
    assert changed == "policy.share_prompts: 'auto' -> 'never'"


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, policy, monkeypatch):
    folder = begun(config(tmp_path / "run"))
    folder.save_checkpoint(policy, {"step": 1, "accuracy": None}, STATE, keep=2)

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(policy, "save", full)
    with pytest.raises(
        InputError, match=r"cannot be written: .*No space left.*step-000001 is whole"
    ):
        folder.save_checkpoint(policy, {"step": 2, "accuracy": None}, STATE, keep=2)
    assert [p.name for p in (folder.path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "make room"),
        (OSError(errno.EFBIG, "File too large"), "make room"),
        (OSError(errno.EACCES, "Permission denied"), "mend that"),
        (OSError("no number"), "mend that"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "make room"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "mend that"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "make room"),
    ],
    ids=str,
)
def test_room_is_made_only_where_it_lacks(tmp_path, policy, monkeypatch, error, said):
    folder = begun(config(tmp_path / "run"))

    def failing(*_):
        raise error

    monkeypatch.setattr(policy, "save_merged", failing)
    with pytest.raises(InputError, match=f"; {said} and go on with --resume"):
        folder.save_final(policy)


def test_a_full_disk_at_the_end_is_one_line_too(tmp_path, policy, monkeypatch):
    folder = begun(config(tmp_path / "run"))

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(policy, "save_merged", full)
    with pytest.raises(InputError, match=r"model cannot be written: .*No space left.*go on with"):
        folder.save_final(policy)


def test_an_interrupt_while_the_old_folder_is_removed_keeps_the_new(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "which").write_text("old")

    def interrupted(folder, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dibs.files.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(path) as unfinished:
        (unfinished / "which").write_text("new")
    assert (path / "which").read_text() == "new"


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path):
    (tmp_path / "model").mkdir()
    for content in ("seed: 0\n", "{broken", ""):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(InputError, match="holds no run to resume"):
            RunFolder(tmp_path).open(config(tmp_path, resume="auto", allow_changes="true"))
    assert (tmp_path / "model").exists()


def test_json_is_strict():
    value = {"a": float("nan"), "b": [1.5, float("inf")], "c": (True, "é")}
    assert to_json(value) == '{"a": null, "b": [1.5, null], "c": [true, "é"]}'
