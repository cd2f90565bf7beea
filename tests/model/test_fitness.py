"""Models that cannot be a policy are refused in one line before anything runs."""

from __future__ import annotations

import pytest

from dibs.cli import main
from odd_models import byte_tokenizer, questions_file, save_model, small_evaluation, small_run


def spoil(value: float):
    def change(model):
        model.model.layers[0].mlp.up_proj.weight[1, 2] = value

    return change


def without_an_end(folder):
    return save_model(folder, byte_tokenizer(eos=None, pad=None))


def larger_tokenizer(folder):
    return save_model(folder, byte_tokenizer(), vocab_size=256)


def an_added_token(folder):
    tokenizer = byte_tokenizer(pad=None)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return save_model(folder, tokenizer, vocab_size=size)


def an_end_that_the_model_lacks(folder):
    return save_model(folder, byte_tokenizer(eos=None), eos_ids=[700, 800])


FAULTS = {
    "no end": (without_an_end, "no end-of-sequence token is declared, so no completion would end"),
    "sizes": (larger_tokenizer, "has tokens up to number 260, but its embeddings have 256 rows; 5"),
    "added": (an_added_token, "up to number 261, but its embeddings have 261 rows; 1 tokens are"),
    "end": (an_end_that_the_model_lacks, "end-of-sequence tokens [700, 800] are not among its 261"),
    "nan": (
        lambda folder: save_model(folder, byte_tokenizer(), change=spoil(float("nan"))),
        "1 of the 2,048 entries of model.layers.0.mlp.up_proj.weight are NaN or infinite",
    ),
    "inf": (
        lambda folder: save_model(folder, byte_tokenizer(), change=spoil(float("inf"))),
        "entries of model.layers.0.mlp.up_proj.weight are NaN or infinite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_models_that_cannot_be_a_policy_are_one_line(tmp_path, capsys, fault):
    make, message = FAULTS[fault]
    model, data = make(tmp_path / "model"), questions_file(tmp_path)
    for words in (small_run(model, data, tmp_path / "run"), small_evaluation(model, data)):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "policy.model " in line
        assert message in line
    assert not (tmp_path / "run").exists()


def test_a_model_whose_pad_and_end_are_odd_but_usable_is_taken(tmp_path, capsys):
    """No pad token; no end but the generation config's, of which the first is not the model's."""
    tokenizer = byte_tokenizer(eos=None, pad=None)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = save_model(tmp_path / "model", tokenizer, eos_ids=[9000, end], vocab_size=320)
    assert main(small_evaluation(model, questions_file(tmp_path))) == 0
    assert "0.0" in capsys.readouterr().out


def test_numbers_that_overflow_are_not_blamed_on_the_learning_rate(tmp_path, capsys):
    """Every weight is finite and the forward pass is not."""

    def change(model):
        model.model.layers[0].mlp.up_proj.weight.fill_(3e38)
        model.model.layers[0].mlp.down_proj.weight.fill_(3e38)

    model = save_model(tmp_path / "model", byte_tokenizer(), change=change)
    data = questions_file(tmp_path)
    norms = ("--estimate.mode=pilot", "--estimate.num_pilots=2", "--estimate.grad_norm=exact")
    for more in ((), norms):
        assert main(small_run(model, data, tmp_path / f"run{len(more)}", *more)) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "NaN or infinite" in error
        assert "update.learning_rate" not in error


@pytest.mark.parametrize("saved", ["model", "checkpoints/step-000004", None])
def test_a_run_given_as_a_model_is_told_apart(tmp_path, capsys, saved):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    if saved:
        save_model(run / saved, byte_tokenizer())
    data = questions_file(tmp_path)
    words = [f"--policy.model={run}", f"--data.train={data}"]
    advice = f"give {run / saved}" if saved else "which has saved no model yet"
    for command in (small_evaluation(run, data), ["data", *words]):
        assert main(command) == 2
        assert f"policy.model {run}: is the folder of a run; {advice}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "saved", "said"),
    [
        ("empty", None, "holds no model; give a folder with a model, such as RUN/model"),
        ("run/checkpoints", "run/checkpoints/step-000004", "holds no model; give {}"),
        ("runs", "runs/one/model", "holds no model; give {}"),
        ("questions.jsonl", None, "is a file, but not .gguf; give the folder of a model"),
        ("package:yaml", None, "holds no model; give a folder with a model, such as RUN/model"),
    ],
)
def test_what_holds_no_model_is_refused_before_the_hub_is_asked(
    tmp_path, capsys, monkeypatch, given, saved, said
):
    monkeypatch.chdir(tmp_path)
    data = questions_file(tmp_path)
    (tmp_path / "empty").mkdir()
    if saved:
        save_model(tmp_path / saved, byte_tokenizer())
    words = [f"--policy.model={given}", f"--data.train={data}"]
    for command in (small_evaluation(given, data), ["data", *words], ["train", *words]):
        assert main(command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.endswith(f"policy.model {given}: {said.format(saved)}")
