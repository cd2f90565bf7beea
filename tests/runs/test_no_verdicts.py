"""A verifier that judges nothing at all ends a command in one line, and the run is saved."""

from __future__ import annotations

import pytest

from dibs.cli import main
from dibs.loop import Trainer
from dibs.rollouts.verify.judges import unreached
from dibs.rollouts.verify.verifiers import InlineVerifier
from dibs.runs.console import PlainView
from dibs.types import InputError
from odd_models import byte_tokenizer, questions_file, save_model, small_evaluation, small_run
from tiny_runs import WORDS, result, run

REASONS = {
    "nothing": "the first: TypeError: float() argument must be",
    "silent": "the first: RuntimeError: no idea",
}


@pytest.mark.parametrize("verifier", REASONS)
def test_no_verdict_at_all_is_one_line_with_the_reason(tmp_path, capsys, verifier):
    model, data = save_model(tmp_path / "model", byte_tokenizer()), questions_file(tmp_path)
    own = (f"--verify.verifier=own_verifiers:{verifier}", "--verify.workers=1")
    training = small_run(model, data, tmp_path / "run", *own, "--evaluate.interval=1")
    for words in (training, ["variance", *training[1:]], small_evaluation(model, data, *own)):
        assert main(words) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dibs ")]
        assert "the verifier gave no verdict on any of" in line
        assert REASONS[verifier] in line
        assert f"mend verify.verifier own_verifiers:{verifier}" in line
    assert (tmp_path / "run" / "checkpoints" / "step-000000").is_dir()


@pytest.mark.parametrize(("step", "when"), [(3, "training"), (6, "evaluation")])
def test_a_run_whose_verifier_fails_is_saved_and_goes_on(tmp_path, step, when):
    """It ends as a run that never stopped, whether a step or an evaluation had no verdict."""
    words = (*WORDS[6:], "--train.steps=6", "--checkpoint.interval=0", "--evaluate.interval=6")
    run(tmp_path / "whole", *words)
    shown, judged, evaluate = PlainView.step, InlineVerifier.verdicts, Trainer.held_out
    failing = []

    def show(self, metrics, steps):
        shown(self, metrics, steps)
        if metrics["step"] == step and when == "training":
            failing.append(True)

    def evaluated(self):
        if self.totals.optimizer_updates and when == "evaluation":
            failing.append(True)
        return evaluate(self)

    def verdicts(self, items):
        found = judged(self, items)
        return (unreached("error", "no idea") if failing else verdict for verdict in found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainView, "step", show)
        patch.setattr(Trainer, "held_out", evaluated)
        patch.setattr(InlineVerifier, "verdicts", verdicts)
        where = "step 4" if when == "training" else "the evaluation of step 6"
        with pytest.raises(
            InputError, match=rf"stopped at {where}: .*no idea; the last good .*step-"
        ):
            run(tmp_path / "run", *words)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").is_dir()
    run(tmp_path / "run", *words, "--resume=yes")
    ours, theirs = result(tmp_path / "run"), result(tmp_path / "whole")
    if when == "training":
        assert ours == theirs
    else:
        assert ours[0] == theirs[0]
