"""Every command of the documentation runs, on small stand-ins, and prints what the pages say.

What a reader has, such as a model or a file of statistics, is played by something small, and keys are
added that make a run short. The commands that need vLLM run in ``tests/with_vllm``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
import yaml

from dibs.cli import main
from dibs.config.load import load_config, split_config
from dibs.data.questions import KNOWN
from doc_commands import COMMANDS, ROOT, Shown
from hub_server import hub_in_place
from run_folders import make_run
from tiny_runs import EASY, EASY_WARM_START, options, run
from tiny_studies import LEFT_OUT, NO_TUNING, TINY_STUDY

pytestmark = pytest.mark.slow
SHORT = {
    "train": [
        *("--train.steps=1", "--train.prompts_per_step=4", "--allocate.num_generations=2"),
        *("--estimate.num_pilots=2", "--sampling.max_completion_length=12"),
        *("--data.size=16", "--data.eval_size=4", "--variance.prompts=2"),
        *("--variance.num_generations=8", "--policy.threads=1", "--policy.device=cpu"),
    ],
    "eval": ["--sampling.max_completion_length=8", "--policy.threads=1", "--policy.device=cpu"],
    "compare": [*TINY_STUDY, NO_TUNING, "--variance.interval=0"],
}
SHORT["variance"] = [
    *("--train.prompts_per_step=16", "--variance.num_generations=32", "--policy.threads=1"),
    *("--data.size=64", "--data.eval_size=4", "--sampling.max_completion_length=12"),
    "--policy.device=cpu",
]
EASY_KEYS = [
    f"--policy.model={EASY}",
    f"--data.train={EASY}",
    *(f"--policy.warm_start.{key}={value}" for key, value in EASY_WARM_START.items()),
]
STAND_INS = {
    "Qwen/Qwen2.5-Math-1.5B": "MODEL",
    "YOUR_CONFIG.yaml": "config.yaml",
    "[wandb, tensorboard]": "[wandb, tensorboard]" if find_spec("wandb") else "[tensorboard]",
}
"""Words of a reader, and what plays them; MODEL, A, B and RUN are folders of those names."""
MEASURED = ("Updates are about as large",)
ADVICE = "\nUse "
"""What comes after it depends on what was measured."""
ELSEWHERE = {"vllm", "vllm_server"}
"""Engines of commands that run in an environment of their own."""


def is_study(shown: Shown) -> bool:
    """Whether it makes the runs of a file of studies/."""
    return shown.dibs[:1] == ("compare",) and shown.dibs[-1].startswith("studies/")


def here(shown: Shown) -> bool:
    """Whether it runs in this environment and in one process."""
    elsewhere = ELSEWHERE & {*shown.words} or shown.words[0] in ("torchrun", "docker")
    return bool(shown.dibs) and not elsewhere and not is_study(shown)


def code(page: str, language: str, first: str) -> str:
    """A page's block of code that begins with a comment or a line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return next(
        block
        for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        if block.startswith(first)
    )


def rows(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def desk(tmp_path_factory, byte_model) -> Path:
    """A folder with all that the commands of the pages find where a reader calls them."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("configs", "studies"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("MODEL", "A", "B", "runs/mine/model"):
        shutil.copytree(byte_model, folder / name)
    for name in ("config", "uniform", "gvm", "mine"):
        own = options(folder / f"runs/of-{name}", *SHORT["train"])
        if name == "uniform":
            own += ["--allocate.allocator=uniform", "--estimate.mode=none"]
        values = load_config(*split_config(own)).model_dump(mode="json", exclude_unset=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    (stats,) = (each for each in COMMANDS if each.words == ("cat", "stats.jsonl"))
    (folder / "stats.jsonl").write_text(stats.output + "\n")
    (folder / "mine.py").write_text(code("CONTRIBUTING.md", "python", "# mine.py"))
    asked = [{"problem": f"What is {i}/7?", "answer": f"\\frac{{{i}}}{{7}}"} for i in range(40)]
    rows(folder / "train.jsonl", asked)
    texts = [r"\boxed{7}", r"\boxed{8}", "seven"]
    rows(folder / "completions.jsonl", [{"completion": t, "answer": "7"} for t in texts])
    run(folder / "RUN")
    for seed in range(3):
        for allocator in ("min_variance", "gvm", "uniform"):
            make_run(folder / f"runs/demo/{allocator}-{seed}", seed=seed, allocator=allocator)
    return folder


@pytest.fixture
def surroundings(desk, monkeypatch, tmp_path):
    """The folder, a hub for what is uploaded, and benchmarks of two questions each."""
    own = {known.hub_id: known for known in KNOWN.values()}

    def loaded(name, *_, **__):
        cells = {own[name].prompt: "1 + 1?", own[name].answer: "2"}
        return datasets.Dataset.from_list([cells, cells])

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    server = hub_in_place(monkeypatch, tmp_path)
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    yield server
    server.close()


def short_form(shown: Shown) -> list[str]:
    """The words of a command, on what plays a reader's own things, and short."""
    name, *rest = (STAND_INS.get(word, word) for word in shown.dibs)
    more = list(SHORT.get(name, []))
    if name == "data":
        more = ["--policy.model=MODEL"]
    elif "--dry-run" in rest:
        more = []
    elif name == "compare":
        names = [Path(word).stem for word in rest if word.endswith(".yaml")]
        more += [*EASY_KEYS, f"--compare.output_dir=compared/{'-'.join(names)}"]
    elif "MODEL" in rest:  # of 512 positions
        more += ["--data.max_prompt_length=256", "--policy.dtype=float32"]
    elif name in ("train", "variance") and "config.yaml" not in rest:
        more += EASY_KEYS
        # The stand-in has problems of one step only, which do not get harder.
        more += ["--data.grow.harder=false"] if "--data.grow.levels" in rest else []
    elif "config.yaml" in rest:
        more = [] if name == "train" else ["--variance.num_generations=8"]
    if name == "train":
        more.append("--overwrite=true")
    return [name, *rest, *more]


@pytest.mark.parametrize("shown", [each for each in dict.fromkeys(COMMANDS) if here(each)], ids=str)
def test_a_command_runs_and_prints_what_its_page_says(shown, surroundings, capsys):
    if shown.dibs == ("--version",):
        command = [sys.executable, "-m", "dibs", *shown.dibs]
        assert subprocess.run(command, check=True, capture_output=True).stdout.startswith(b"dibs ")
        return
    assert main(short_form(shown)) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    if shown.dibs[0] == "allocate":
        assert printed.strip() == shown.output
    else:
        missing = [part for part in parts(shown.output) if part not in plain(printed)]
        assert missing == []


def plain(text: str) -> str:
    """Without line breaks and columns."""
    return " ".join(text.split())


def parts(output: str) -> list[str]:
    """What must be printed whatever is measured: the text of every line before its first number.

    Sentences that depend on what was measured are left out.
    """
    stated = output.partition(ADVICE)[0]
    lines = [line for line in stated.splitlines() if not line.startswith(MEASURED)]
    return [plain(re.split(r"\d", line)[0]) for line in lines]


def test_studies_that_pages_run_are_run_by_the_smoke_test():
    studies = {Path(each.dibs[-1]).stem for each in COMMANDS if is_study(each)}
    assert studies
    assert studies <= {*LEFT_OUT}


def test_several_processes_train_as_the_page_says(surroundings):
    torchrun = [each for each in COMMANDS if each.words[0] == "torchrun"]
    out, seen = "runs/several", []
    for shown in dict.fromkeys(each.words for each in torchrun):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = [word for word in shown if word != "torchrun"]
        assert words[:2] == ["--nproc_per_node", "4"]
        done = subprocess.run(
            [sys.executable, *launcher, *words[2:], f"--output_dir={out}"],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
                ),
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        seen.append(done.stdout)
    assert "is finished" in seen[-1]  # --resume of a run that has come to its end
    assert Path(out, "summary.json").exists()


def test_every_other_command_is_one_that_something_else_runs():
    """make targets exist, and extras; the container and vLLM have tests of their own, and tar copies."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for shown in COMMANDS:
        words = shown.words
        if words[:2] == ("docker", "run") and "tar" not in words:
            alone = shown.dibs or words[-2:]
            assert any(each.words[-len(alone) :] == alone for each in COMMANDS if each != shown)
        if shown.dibs or words[0] in ("cat", "docker") or words[0].startswith("VLLM_"):
            continue
        if words[0] == "make":
            command = ["make", "-n", "-C", str(ROOT), *words[1:]]
            assert subprocess.run(command, capture_output=True, check=False).returncode == 0, words
        else:
            assert words[:2] == ("pip", "install"), words
            named = re.fullmatch(r"dibs-rl\[([\w-]+)\] @ git\+URL", words[2])
            assert named, words
            assert named[1] in extras, words
