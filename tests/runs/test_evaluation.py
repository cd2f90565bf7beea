"""dibs eval, dibs data and dibs verify: scores by hand and brute force, resuming, bad input."""

from __future__ import annotations

import json
import math
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from dibs.allocation.order_k import pass_at_k
from dibs.cli import main
from dibs.files import read_lines
from dibs.rollouts.scores import majority, score
from dibs.types import Completion, Group, Prompt, Rollout
from tiny_groups import make_group
from tiny_runs import run, untimed


@pytest.mark.parametrize(
    ("n", "accepted", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 4), (4, 4, 2), (5, 1, 5)]
)
def test_pass_at_k_matches_enumeration(n, accepted, k):
    draws = list(combinations([1] * accepted + [0] * (n - accepted), k))
    assert pass_at_k(n, accepted, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


def test_pass_at_k_is_unbiased():
    rng = np.random.default_rng(0)
    told = [pass_at_k(10, int(c), 3) for c in rng.binomial(10, 0.2, 20_000)]
    error = np.std(told) / np.sqrt(len(told))
    assert abs(np.mean(told) - (1 - 0.8**3)) < 5 * error
    assert pass_at_k(2, 1, 3) == 1  # fewer than k: whether any was accepted


def vote(*answers: tuple[str, str]) -> float:
    prompt = Prompt("00", "q", (1,), "7")
    rollouts = tuple(
        Rollout(prompt, Completion((1,), text, (0.0,), True), 0.0, status, status == "accepted")
        for text, status in answers
    )
    return majority(Group(prompt, rollouts), lambda text: None if "?" in text else text)


def test_the_majority_by_hand():
    yes, no, none = "accepted", "rejected", "no_answer"
    assert vote(("7", yes), ("8", no), ("7.0", yes)) == 1  # equal in value, written differently
    assert vote(("7", yes), ("8", no), ("8", no)) == 0
    assert vote(("8", no), ("7", yes)) == 0  # a tie: the one given first
    assert vote(("7", yes), ("8", no)) == 1
    assert vote(("", none), ("", none), ("7", yes)) == 1  # no answer, no vote
    assert vote(("", none)) == 0
    assert vote(("8", no), ("9", no), ("7", yes)) == 0
    assert vote(("what?", no), ("what?", no), ("7", yes)) == 0  # unread, but a vote


def test_scores_leave_out_what_has_no_verdict():
    some = make_group([1, 0])
    told = score([some, Group(some.prompt, (), ("timeout", "error"))])
    assert told.prompts == 1
    assert told.accuracy == 0.5
    assert told.statuses == {"status": 2, "timeout": 1, "error": 1}
    nothing = score([Group(some.prompt, (), ("error",))])
    assert nothing.statuses == {"error": 1}
    scores = {key: value for key, value in nothing.metrics().items() if "no_answer" not in key}
    assert set(scores.values()) == {None}


def test_what_is_too_long_to_be_asked_is_not_solved():
    told = score([make_group([1, 1]), make_group([1, 0])], too_long=2)
    assert (told.prompts, told.accuracy, told.pass_at_k) == (4, 1.5 / 4, 2 / 4)
    expected = (math.log(2.5 / 3) + math.log(1.5 / 3) + 2 * math.log(0.5 / 3)) / 4
    assert told.log_accept_rate == pytest.approx(expected)


def test_the_value_of_log_likelihood_by_hand():
    told = score([make_group([1, 0, 0]), make_group([0]), make_group([1, 1])])
    expected = (math.log(1.5 / 4) + math.log(0.5 / 2) + math.log(2.5 / 3)) / 3
    assert told.log_accept_rate == pytest.approx(expected)


def evaluate(byte_model, math_file, *more: str) -> int:
    small = ["--sampling.max_completion_length=8", "--policy.threads=1", "--policy.device=cpu"]
    return main(["eval", str(byte_model), "--data", str(math_file), *small, *more])


def test_an_evaluation_is_kept_and_goes_on(byte_model, math_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(byte_model, math_file, "--k=2", "--json", "--out", str(out)) == 0
    told = json.loads(capsys.readouterr().out)
    (row,) = told["benchmarks"]
    assert (row["prompts"], row["completions"]) == (40, 80)
    assert row["avg"] == 0
    assert row["statuses"]["no_answer"] > 40
    assert told["settings"]["sampling.temperature"] == 1
    (kept,) = (out / "records").iterdir()
    whole = kept.read_text()
    # As if it had been killed while it wrote.
    kept.write_text("".join(whole.splitlines(keepends=True)[:30]) + '{"prompt_id": "12')
    assert evaluate(byte_model, math_file, "--k=2", "--out", str(out)) == 0
    assert "30 prompts evaluated before" in capsys.readouterr().err
    assert sorted(kept.read_text().splitlines()) == sorted(whole.splitlines())
    again = json.loads((out / "results.json").read_text())
    assert again["benchmarks"] == told["benchmarks"]
    assert evaluate(byte_model, math_file, "--k=3", "--out", str(out)) == 2
    assert "other settings: k was 2 and is 3; samples was 2 and is 3" in capsys.readouterr().err
    assert evaluate(byte_model, math_file, "--k=2", "--verify.tolerance=1", "--out", str(out)) == 2
    assert "verify.tolerance was 1e-06 and is 1.0" in capsys.readouterr().err
    (out / "settings.json").write_text("{broken")
    assert evaluate(byte_model, math_file, "--k=2", "--out", str(out)) == 2
    assert "settings.json is damaged" in capsys.readouterr().err
    # The data's own folder is no place to be overwritten.
    before = math_file.read_text()
    assert evaluate(byte_model, math_file, "--k=2", "--out", str(math_file.parent)) == 0
    assert math_file.read_text() == before


def test_more_samples_than_k(byte_model, math_file, capsys):
    more = ("--k=2", "--samples=3", "--data.max_rows=5", "--verify.verifier=exact")
    assert evaluate(byte_model, math_file, *more) == 0
    shown = capsys.readouterr().out
    assert "pass@2" in shown
    assert "samples 3" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "mth"], "unknown benchmark 'mth'; known: math-500, minerva-math"),
        ([], "nothing to evaluate on; give --benchmark NAME or --data FILE"),
        (["--data", "x.jsonl", "--k", "3", "--samples", "2"], "k is 3 and there are 2 samples"),
        (["--data", "x.jsonl", "other", "extra.yaml"], "unexpected 'extra.yaml'"),
        (["--data", "x.jsonl", "--format", "csv"], "--format csv: unknown; known: lm-eval, light"),
        (["--data", "x.jsonl", "--format", "lm-eval"], "lm-eval needs --out FOLDER or --json"),
        (["--data", "x.jsonl"], "x.jsonl: no such file"),
        (
            ["--data", "x.jsonl", "--sampling.temp", "1"],
            "unknown key sampling.temp; sampling has",
        ),
    ],
)
def test_bad_evaluations_are_one_clear_line(byte_model, words, message, capsys):
    short = ["--sampling.max_completion_length=8"]
    assert main(["eval", str(byte_model), *words, *short]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_answer_file_is_judged(tmp_path, capsys):
    rows = [
        ("\\boxed{7}", "7"),
        ("\\boxed{8}", "7"),
        ("none", "7"),
        (r"\boxed{\sum_{k=1}^{2000}\sum_{j=1}^{2000}\sqrt{\frac{1}{kj}}}", "7"),
    ]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"completion": text, "answer": gold}) for text, gold in rows]
    path.write_text("\n".join(lines))
    out = tmp_path / "verdicts.jsonl"
    assert main(["verify", str(path), "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("seconds") < 60
    assert told == {
        "items": 4,
        "accepted": 1,
        "rejected": 2,
        "no_answer": 1,
        "timeout": 0,
        "error": 0,
    }
    verdicts = read_lines(out)
    assert [v["status"] for v in verdicts] == ["accepted", "rejected", "no_answer", "rejected"]
    assert [v["reward"] for v in verdicts] == [1, 0, 0, 0]
    assert main(["verify", str(path), "--verifier", "exact"]) == 0
    assert "accepted" in capsys.readouterr().out


def test_a_completion_that_exceeds_the_time_limit_has_no_verdict(tmp_path, capsys):
    path, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    lines = [
        json.dumps({"completion": text, "answer": os.devnull}) for text in ("right", "sleep 60")
    ]
    path.write_text("\n".join(lines))
    words = ["--verifier", "own_verifiers:sleepy", "--timeout", "2", "--out", str(out), "--json"]
    assert main(["verify", str(path), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 2 < told["seconds"] < 60
    assert (told["accepted"], told["timeout"], told["error"]) == (1, 1, 0)
    assert [v["reward"] for v in read_lines(out)] == [1, None]
    assert read_lines(out)[1]["reason"] == "no verdict within 2 s"


def test_gold_answers_that_cannot_be_read_are_named(byte_model, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    golds = ["7", r"\frac{1}{", "see below", r"\text{no}"] * 5
    lines = [json.dumps({"question": f"q{n}", "answer": g}) for n, g in enumerate(golds)]
    path.write_text("\n".join(lines))
    words = ["data", "--policy.model", str(byte_model), "--data.train", str(path)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["unreadable_answers"]
    assert found == {"count": 5, "first": [r"\frac{1}{"] * 5}
    assert main([*words, "--verify.verifier", "numeric"]) == 0
    assert "15 gold answers cannot be read" in capsys.readouterr().out


def test_verdicts_are_explained(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    texts = [r"\boxed{7}", r"\boxed{7 \text{ is wrong}}", r"\boxed{6} or maybe \boxed{7}"]
    path.write_text("\n".join(json.dumps({"completion": text, "answer": "7"}) for text in texts))
    assert main(["verify", str(path), "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accepted\t7\ttext: the same text"
    assert lines[1] == "rejected\t7\tread: the answer was read as words: 7 is wrong"
    assert lines[2] == "rejected\t7\tfind: several answers: 6 and 7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: JSONDecodeError"),
        ('{"answer": "7"}', "row 2: no completion; it has answer"),
        ('{"completion": "x"}', "row 2: no answer; it has completion"),
        ('{"completion": "x", "answer": " "}', "row 2: the answer is empty"),
        ('{"completion": ["x"], "answer": "7"}', "row 2: completion holds ['x'], not text"),
        ("[]", "line 2: expected an object"),
    ],
)
def test_bad_rows_leave_nothing_behind(tmp_path, capsys, line, message):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out" / "verdicts.jsonl"
    out.parent.mkdir()
    path.write_text('{"completion": "x", "answer": "7"}\n' + line + "\n")
    assert main(["verify", str(path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
    assert main(["verify", str(tmp_path / "nowhere.jsonl")]) == 2
    path.write_text('{"completion": "x", "answer": "7"}')
    assert main(["verify", str(path), "--out", str(out.parent), "--verifier=exact"]) == 2
    assert "it is a folder" in capsys.readouterr().err
    assert main(["verify", str(path), "--out", os.devnull, "--verifier=exact"]) == 0
    assert not Path(os.devnull).is_file()


def test_prompts_that_are_too_long_count_as_not_solved(byte_model, tmp_path, capsys):
    """Leaving them out would raise the score of a model that can read less."""
    rows = [{"prompt": text, "answer": "7"} for text in ("short", "also short", "long " * 40)]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", str(byte_model), "--data", str(path), "--policy.device=cpu"]
    words += ["--sampling.max_completion_length=2", "--data.max_prompt_length=150"]
    words += ["--verify.verifier=own_verifiers:everything", "--verify.workers=1"]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["benchmarks"]
    assert (row["prompts"], row["too_long"], row["completions"]) == (3, 1, 2)
    assert row["avg"] == row["pass"] == pytest.approx(2 / 3)
    assert main(words) == 0
    assert "q: 1 prompt is too long for the model or data.max_" in " ".join(
        capsys.readouterr().out.split()
    )


def test_training_counts_what_is_too_long_as_not_solved(byte_model, tmp_path, capsys):
    train, held_out, out = tmp_path / "t.jsonl", tmp_path / "q.jsonl", tmp_path / "run"
    for path, texts in ((train, ("a", "b")), (held_out, ("short", "long " * 40))):
        rows = [{"prompt": text, "answer": "7"} for text in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", f"--policy.model={byte_model}", "--policy.device=cpu", "--train.steps=1"]
    words += [f"--data.train={train}", f"--data.eval={held_out}", f"--output_dir={out}"]
    words += ["--sampling.max_completion_length=2", "--data.max_prompt_length=150"]
    words += ["--verify.verifier=own_verifiers:everything", "--verify.workers=1"]
    words += ["--update.updates_per_step=1"]
    assert main([*words, "--train.prompts_per_step=2", "--variance.interval=0"]) == 0
    assert " 1 update, " in " ".join(capsys.readouterr().out.split())
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.5, 0.5)


def test_a_template_that_asks_for_no_box_is_pointed_out(byte_model, math_file, capsys):
    words = ["data", "--policy.model", str(byte_model), "--data.train", str(math_file)]
    warning = "No prompt asks for a \\boxed{} answer, and the verifier math takes no other: set"
    for more, warned in (
        ((), True),
        (("--data.template=boxed",), False),
        (("--verify.answer_from=anywhere",), False),
        (("--verify.verifier=own_verifiers:everything",), False),
    ):
        assert main([*words, *more]) == 0
        assert (warning in capsys.readouterr().out) == warned


def test_data_are_shown_before_they_are_trained_on(byte_model, math_file, capsys):
    words = ["--policy.model", str(byte_model), "--data.train", str(math_file)]
    words += ["--data.template=boxed", "--data.max_prompt_length=102"]
    assert main(["data", *words]) == 0
    shown = capsys.readouterr().out
    assert (
        "9 training prompts, 1 held out; too few for a step of train.prompts_per_step 64" in shown
    )
    assert "30 rows dropped: longer than 102 tokens" in shown
    assert shown.count("\n---") == 5
    assert "put your final answer within \\boxed{}" in shown
    assert main(["data", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["train"] == 9
    assert len(told["prompts"]) == 5
    assert main(["data", "--policy.model", "./nowhere", "--data.train", str(math_file)]) == 2
    assert "policy.model ./nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(("failures", "mode"), [("exclude", "cross_fit"), ("reject", "pilot")])
def test_completions_without_a_verdict_are_counted_not_learned_from(tmp_path, failures, mode):
    out = tmp_path / "run"
    summary = run(
        out,
        "--verify.verifier=own_verifiers:moody",
        "--verify.timeout=0.2",
        f"--verify.failures={failures}",
        f"--estimate.mode={mode}",
        "--estimate.num_pilots=2",
        "--train.steps=1",
        "--evaluate.num_generations=1",
    )
    line = untimed(out)[1]
    failed = line["verifier_timeouts"] + line["verifier_errors"]
    assert line["verifier_errors"] > 0
    assert line["verifier_timeouts"] > 0
    assert line["count_sum"] == 32
    kept = sum(sum(each["accepted"]) for each in read_lines(out / "allocations.jsonl"))
    assert summary["accepted_rollouts"] == kept <= 32 - failed
    assert not math.isnan(line["reward"])
    if failures == "reject":
        assert line["accept_rate"] == pytest.approx(kept / 32)
    else:
        assert line["accept_rate"] == pytest.approx(kept / (32 - failed))


def test_results_are_shown_for_people(byte_model, math_file, capsys):
    assert evaluate(byte_model, math_file, "--data.max_rows=4") == 0
    shown = capsys.readouterr().out
    assert "0.0 (0.0-" in shown
    assert "No top-k, top-p or repetition penalty." in shown
