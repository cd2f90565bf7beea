"""The command line as a user calls it: exit statuses, one-line errors, JSON Lines."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from dibs import __version__, allocate
from dibs.__main__ import main as started
from dibs.arguments import VERIFY_KEYS
from dibs.cli import main
from dibs.config import Config, Section
from dibs.study.matrix import CompareConfig
from tiny_runs import EASY_WARM_START

ROWS = [
    {"prompt_id": "easy", "trials": 8, "successes": 8, "grad_norm": 1.0},
    {"prompt_id": "middle", "trials": 8, "successes": 2, "grad_norm": 4.0, "mean_tokens": 9},
    {"prompt_id": "hopeless", "trials": 8, "successes": 0, "grad_norm": None, "extra": "ignored"},
    {"prompt_id": 7, "trials": 8, "successes": 4, "grad_norm": 2, "grad_norm_rejected": 5.5},
]
NAN = float("nan")
KNOWN = ([8, 8, 8, 8], [8, 2, 0, 4], [1, 4, NAN, 2])
REJECTED = [NAN, NAN, NAN, 5.5]


@pytest.fixture
def stats(tmp_path):
    path = tmp_path / "stats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_allocate_prints_counts_in_input_order(stats, capsys):
    assert main(["allocate", str(stats), "--budget", "100"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt_id"] for line in lines] == ["easy", "middle", "hopeless", 7]
    assert sum(line["count"] for line in lines) == 100
    expected = allocate(*KNOWN, grad_norm_rejected=REJECTED, budget=100)
    assert [line["count"] for line in lines] == expected.tolist()


def test_allocate_for_a_truncated_target(stats, capsys):
    assert main(["allocate", str(stats), "--budget", "100", "--order", "12"]) == 0
    counts = [json.loads(line)["count"] for line in capsys.readouterr().out.splitlines()]
    expected = allocate(*KNOWN, grad_norm_rejected=REJECTED, budget=100, order=12)
    assert counts == expected.tolist()
    assert min(counts) >= 12


def test_allocate_reads_standard_input_in_a_real_process(stats):
    command = [sys.executable, "-m", "dibs", "allocate", "-", "--budget", "9"]
    command += ["--allocator", "uniform", "--lower", "1", "--upper", "3"]
    text = stats.read_text()
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["count"] for line in done.stdout.splitlines()] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", [], "holds no prompts; give one JSON object a line"),
        ("{broken\n", [], "stats.jsonl, line 1: not JSON, key must be"),
        ('\n{"prompt_id": "a"}\n', [], "line 2: trials: is missing\n"),
        ('{"prompt_id": "a", "trials": "x"}', [], "trials: must be a whole number (got 'x')"),
        ("[1]\n", [], "line 1: must hold keys and values (got [1])"),
        (None, ["--budget", "-4"], "budget -4 is not a whole number"),
        (None, ["--lower", "50"], "smaller than the sum of the lower bounds, 200"),
        (None, ["--upper", "2"], "larger than the sum of the upper bounds, 8"),
        (None, ["--order", "30"], "estimator order_k gives every prompt at least its order, 30"),
        (None, ["--order", "2", "--objective", "grpo"], "only log_likelihood has one"),
        (None, ["--allocator", "best"], "unknown allocator 'best'"),
    ],
)
def test_allocate_refuses_bad_input_with_status_2(stats, capsys, content, arguments, message):
    if content is not None:
        stats.write_text(content)
    assert main(["allocate", str(stats), "--budget", "100", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_number_of_an_option_is_refused_in_words_of_our_own(capsys):
    for arguments in (["allocate", "-", "--budget", "4.5"], ["eval", "model", "--k", "4.5"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "4.5" in said
        assert "Input should" not in said


def test_allocate_without_its_file(tmp_path, capsys):
    assert main(["allocate", str(tmp_path / "none"), "--budget", "1"]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_row_that_cannot_be_names_its_prompt(capsys, monkeypatch):
    row = {"prompt_id": "odd", "trials": 1, "successes": 2, "grad_norm": 1.0}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(row)))
    assert main(["allocate", "-", "--budget", "1"]) == 2
    assert "prompt 'odd': successes = 2 exceeds trials" in capsys.readouterr().err


def test_train_refuses_bad_input_with_status_2_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, message in (
        ([str(tmp_path / "none.yaml")], "cannot read config"),
        (["--train.steps", "1", "--seed", "-1"], "seed: must be at least 0 (got"),
        (["--seed", "1", "a.yaml", "b.yaml"], "got 'b.yaml' after the config a.yaml"),
        (["--allocate.alocator", "gvm"], "nearest is allocate.allocator"),
        (["--data.train", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--policy.model", "./nowhere"], "policy.model ./nowhere: no such folder"),
        (
            ["--allocate.num_generations", "100000000"],
            "allocate.num_generations 100,000,000 x 64 prompts = 6,400,000,000 completions at once do",
        ),
        (["--estimate.num_pilots=99999999"], "estimate.num_pilots 99,999,999 x 64 prompts ="),
    ):
        assert main(["train", *arguments, "--output_dir", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("dibs train: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert not out.exists()


def test_an_interrupt_while_the_command_line_is_imported(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "dibs.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dibs.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert started() == 130
    assert capsys.readouterr().err == "dibs: interrupted\n"


@pytest.mark.slow
def test_an_interrupted_verification_is_one_line(tmp_path):
    """A terminal interrupts the workers, too."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "\\\\boxed{7}", "answer": "7"}\n' * 200_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "dibs", "verify", str(path), "--workers=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    time.sleep(8)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "dibs verify: interrupted\n")


def all_keys(section=Config, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def choices(kind):
    if get_origin(kind) is Literal:
        return get_args(kind)
    return [each for inner in get_args(kind) for each in choices(inner)]


@pytest.mark.parametrize("command", ["train", "variance", "data", "compare"])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_lists_every_key_with_its_default_and_allowed_values(
    command, columns, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", columns)
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    fields = dict(all_keys())
    if command == "compare":
        fields |= dict(all_keys(CompareConfig, "compare."))
    for key, field in fields.items():
        (head,) = re.findall(
            rf"^  --{re.escape(key)}\b(.*\n(?:      \S.*\n)*)", shown, re.MULTILINE
        )
        words = " ".join(head.split())
        assert "(default: " in words, key
        allowed = words.partition("(default: ")[0].split("|")
        for choice in choices(field.annotation):
            assert any(str(choice) in each for each in allowed), (key, choice)
    assert "--estimate.num_pilots INTEGER >= 1 (default: 8)" in shown
    assert "--algorithm.objective log_likelihood|expected_reward|grpo|null" in shown
    assert "policy.lora: Low-rank adapters" in shown


def test_help_and_version(capsys):
    for arguments, expected in (
        (["--help"], "allocate"),
        (["-h"], "Spread a budget over prompts"),
        (["--version"], f"dibs {__version__}\n"),
        (["allocate", "--help"], "grad_norm_rejected"),
        (["report", "--help"], "--watch [SECONDS]"),
        (["eval", "--help"], "math-500"),
    ):
        assert main(arguments) == 0
        assert expected in capsys.readouterr().out


def test_help_of_verify_lists_the_keys_of_its_section(capsys):
    assert main(["verify", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in VERIFY_KEYS:
        assert f"  --{key.replace('_', '-')} " in shown
    assert "--verifier TEXT (default: math)" in shown
    assert "--answer-from boxed|anywhere (default: boxed)" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dibs: Missing command; see dibs --help"),
        (["fly"], "dibs: No such command 'fly'"),
        (["fl\ny"], r"fl\n"),
        (["--fly"], "dibs: No such option: --fly"),
        (["eval"], "dibs eval: Missing argument 'MODEL'"),
        (["eval", "m", "--k"], "dibs eval: Option '--k' requires an argument"),
        (["report"], "dibs report: Missing argument 'RUN...'"),
        (["report", "run", "--fly"], "dibs report: No such option: --fly"),
        (["report", "run", "--watch", "0.5"], "dibs report: --watch 0.5: give seconds from 1 to"),
        (["report", "none", "--watch"], "dibs report: nothing to report: none"),
        (["report", "--watch", "none"], "dibs report: nothing to report: none"),
        (["verify", "file", "--failures", "reject"], "dibs verify: unknown option --failures"),
        (["verify", "file", "--timeout=-1"], "dibs verify: command line: verify.timeout: must be"),
        (["allocate", "-", "--budget", "many"], "dibs allocate: Invalid value for '--budget'"),
        (["allocate", "-"], "dibs allocate: give either --budget or --token-budget"),
        (
            ["allocate", "-", "--budget", "1", "--token-budget", "1"],
            "dibs allocate: give either --budget or --token-budget",
        ),
        (["train", "--se\ned", "1"], r"dibs train: command line: unknown key se\ned;"),
        (["train", "--a\u2028b.c\x1b[31m=1"], r"unknown key a\u2028b"),
        (["train", "no\nsuch.yaml"], r"dibs train: cannot read config no\nsuch.yaml"),
        (["train", "--train.steps", "3\n\n"], "dibs train: "),
        (["data", "--data.train", "a\r\nb.jsonl"], "dibs data: "),
    ],
)
def test_bad_command_lines_are_one_printable_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if words[0:1] == ["verify"]:
        (tmp_path / "file").write_text("")
    if words == ["train", "--train.steps", "3\n\n"]:
        words = [*words, "--seed", "-1\n"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.endswith("\n")
    assert captured.err[:-1].isprintable()


def test_an_interrupted_run_says_where_it_stands_and_is_whole(tmp_path):
    out = tmp_path / "out"
    words = ["--policy.model=arithmetic-easy", "--data.train=arithmetic-easy", "--data.size=64"]
    warm = [f"--policy.warm_start.{key}={value}" for key, value in EASY_WARM_START.items()]
    command = [sys.executable, "-m", "dibs", "train", *words, *warm, "--policy.threads=1"]
    command += ["--data.eval_size=8", "--train.steps=100000", "--evaluate.interval=0"]
    command += ["--checkpoint.interval=2", "--train.prompts_per_step=4", f"--output_dir={out}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "step-000002").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Interrupted. {out} holds the run so far; the last good checkpoint is" in said
    assert not (out / "summary.json").exists()
    assert not list((out / "checkpoints").glob(".unfinished*"))
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_the_allocator_examples_of_the_documentation(tmp_path, capsys):
    readme = (Path(__file__).parents[1] / "docs" / "allocator.md").read_text()
    rows = re.findall(r'^\{"prompt_id".*"trials".*\}$', readme, flags=re.MULTILINE)
    printed = re.findall(r'^\{"prompt_id".*"count".*\}$', readme, flags=re.MULTILINE)
    (words,) = re.findall(r"dibs allocate stats.jsonl (.*)$", readme, flags=re.MULTILINE)
    (tmp_path / "stats.jsonl").write_text("\n".join(rows))
    assert main(["allocate", str(tmp_path / "stats.jsonl"), *words.split()]) == 0
    assert capsys.readouterr().out.splitlines() == printed
    (code, array) = re.findall(r"```python\n(.*\n\))  # array\((.*)\)\n", readme, flags=re.DOTALL)[
        0
    ]
    space: dict = {}
    exec(code, space)
    assert space["counts"].tolist() == json.loads(array)


def test_the_version_and_the_package_need_no_scipy():
    asked = (
        "import sys, runpy; sys.argv = ['dibs', '--version']\n"
        "try: runpy.run_module('dibs', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'scipy', 'torch', 'numpy'} & sys.modules.keys()\n"
        "from dibs import InputError, PromptBudget, allocate\n"
        "assert allocate([1], [1], [1.0], budget=2).tolist() == [2]"
    )
    said = subprocess.run(
        [sys.executable, "-c", asked], check=False, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("dibs ")
