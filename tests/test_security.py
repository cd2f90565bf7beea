"""What SECURITY.md promises."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs.cli import main
from dibs.config import PolicyConfig
from dibs.config.secrets import HIDDEN, without_secrets
from dibs.files import checksum
from dibs.model.pretrained import load_policy
from dibs.report.arms import group_runs
from dibs.report.completions import pack_completions
from dibs.report.page import Contents, render_page
from dibs.report.tables import arm_row, run_rows
from dibs.runs.read import read_run
from dibs.types import InputError
from run_folders import make_run, reported_run, write_lines
from tiny_runs import PILOT_FREE, options, run

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MARK = "was_here"
EVIL = f"open({MARK!r}, 'w').write('x')\n\ndef boom(*words, **more):\n    return 0.0\n"
TOKEN = "hf_" + "a1B2" * 9
PASSWORD, API_KEY = "p" + "w", "api_key"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path


def test_names_of_functions_in_data_and_run_folders_are_not_imported(here, capsys):
    name = "evil:boom"
    path = make_run(here / "run", allocator=name, finished=False)
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(
        f"{config}verify: {{verifier: '{name}'}}\nselect: {{pool: all}}\n"
    )
    assert main(["report", str(path)]) == 0
    reported_run(path)
    assert main(["train", "--resume", *options(path)]) == 2
    rows = [{"completion": name, "answer": name, "verifier": name, "prompt": name}] * 2
    write_lines(here / "rows.jsonl", rows)
    assert main(["verify", "rows.jsonl"]) == 0
    assert main(["data", "--data.train=rows.jsonl", "--policy.model=arithmetic-easy"]) in (0, 2)
    stats = [{"prompt_id": name, "trials": 1, "successes": 1, "grad_norm": 1.0, "allocator": name}]
    write_lines(here / "stats.jsonl", stats)
    main(["allocate", "stats.jsonl", "--budget", "2"])
    assert not (here / MARK).exists()
    # The same name on the user's own command line is imported.
    assert main(["verify", "rows.jsonl", "--verifier", name]) == 0
    assert (here / MARK).exists()


@pytest.mark.parametrize("known", [True, False])
def test_code_that_a_model_brings_is_not_run(here, known):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = here / "model"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).save_pretrained(folder)
    own = json.loads((folder / "config.json").read_text())
    own["auto_map"] = {"AutoConfig": "evil.Boom", "AutoModelForCausalLM": "evil.Boom"}
    own["model_type"] = "qwen2" if known else "evil"
    (folder / "config.json").write_text(json.dumps(own))
    tokenizer = {"tokenizer_class": "Boom", "auto_map": {"AutoTokenizer": ["evil.Boom", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "evil.py").write_text(EVIL.replace(MARK, str(here / MARK)))
    with pytest.raises(InputError):
        load_policy(PolicyConfig(model=str(folder), device="cpu"), 1.0)
    assert not (here / MARK).exists()


class Pickled:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(here, capsys):
    out = here / "out"
    run(out, "--checkpoint.interval=1")
    (out / "summary.json").unlink()
    folder = out / "checkpoints" / "step-000002"
    torch.save({"totals": Pickled()}, folder / "trainer.pt")
    sums = json.loads((folder / "checksums.json").read_text())
    sums["trainer.pt"] = checksum(folder / "trainer.pt")
    (folder / "checksums.json").write_text(json.dumps(sums))
    assert main(["train", "--resume", *options(out, "--checkpoint.interval=1")]) == 2
    assert "does not fit this configuration: UnpicklingError" in capsys.readouterr().err
    assert not (here / MARK).exists()
    with pytest.raises(FileExistsError):  # it would have run otherwise
        pickle.loads(pickle.dumps(Pickled())), pickle.loads(pickle.dumps(Pickled()))


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


def test_the_sources_read_no_pickle():
    readers = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {name for name in modules(tree) if name.partition(".")[0] in readers}
        assert found <= {"pickle.UnpicklingError"}, path
        for name, call in calls(tree):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in ("eval", "exec", "os.system", "yaml.unsafe_load"), path
            assert name != "torch.load" or words.get("weights_only") == "True", path
            assert name != "yaml.load" or ast.unparse(call.args[1]) == "_Loader", path
            assert words.get("allow_pickle", "False") == words.get("shell", "False") == "False"


def test_no_source_opens_a_port():
    servers = {"socketserver", "http.server", "uvicorn", "fastapi", "flask", "aiohttp"}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert not {name for name in modules(tree) if name.startswith(tuple(servers))}, path
        assert not {name for name, _ in calls(tree) if name.endswith((".bind", ".listen"))}, path
        assert "0.0.0.0" not in text, path


def test_servers_of_the_documentation_listen_on_the_loopback():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```.*?^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    ]
    servers = [block for block in blocks if re.search(r"api_server|vllm serve|http\.server", block)]
    assert len(servers) >= 2
    for block in servers:
        assert "--host 127.0.0.1" in block


def test_processes_of_one_machine_meet_on_the_loopback(monkeypatch):
    from dibs import processes

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "GLOO_SOCKET_IFNAME": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(processes.dist, "init_process_group", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        processes.start_processes()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


PIECES = [
    "<",
    ">",
    "&",
    '"',
    "'",
    "script",
    "</script>",
    "<!--",
    "-->",
    "<img src=x onerror=y>",
    "\0",
]
PIECES += [
    "{{ 1234 * 5678 }}",
    "{% raw %}",
    "]]>",
    "<svg onload=y>",
    "&lt;",
    "\u2028",
    "a",
    " ",
    "</pre>",
    "=1",
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


class Tags(HTMLParser):
    """Tags and attributes of a page, and the text of its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: Counter[tuple] = Counter()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen[(tag, *sorted(name for name, _ in attrs))] += 1

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.seen[("comment",)] += 1


def page_with(folder: Path, text: str) -> Tags:
    """The page of a run all of whose texts are this one, without its figures."""
    for name in ("metrics.jsonl", "samples.jsonl", "sessions.jsonl"):
        lines = (folder / name).read_text().splitlines()
        given = [
            {
                key: text if isinstance(value, str) else value
                for key, value in json.loads(line).items()
            }
            for line in lines
        ]
        write_lines(folder / name, given)
    config = {"allocate": {"allocator": text}, "policy": {"model": text}, "data": {text: text}}
    (folder / "config.yaml").write_text(json.dumps(config))
    found = reported_run(folder)
    arms = group_runs([found])
    broken = read_run(folder / ("gone" + text.replace("/", "").replace("\0", "")))
    rows = run_rows(arms, [broken])  # type: ignore[list-item]
    contents = Contents(
        [text], arms, [arm_row(arm) for arm in arms], rows, [], pack_completions(arms)
    )
    return Tags(render_page(contents))


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_no_text_from_runs_becomes_markup(tmp_path_factory, text):
    folder = make_run(tmp_path_factory.mktemp("fuzz") / "run")
    plain, found = page_with(folder, "x" + "a" * len(text)), page_with(folder, text)
    assert found.seen == plain.seen
    assert "7006652" not in "".join(found.texts)
    (data,) = [each for each in found.texts if each.startswith('{"runs"')]
    assert json.loads(data)["rows"][0][3] == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"env": {f"judge_{API_KEY}": "abc"}}, {"env": {f"judge_{API_KEY}": HIDDEN}}),
        ([f"http://me:{PASSWORD}@host/x"], [f"http://{HIDDEN}@host/x"]),
        (f"take {TOKEN}", f"take {HIDDEN}"),
        (f"http://me:{PASSWORD}@w0rd1@host and a@b", f"http://{HIDDEN}@host and a@b"),
        ({f"{API_KEY}s": ["a", "b", 3], "n": [1]}, {f"{API_KEY}s": [HIDDEN, HIDDEN, 3], "n": [1]}),
        ({"credentials": {"user": {"name": "a"}}}, {"credentials": {"user": {"name": HIDDEN}}}),
        *(
            ({name: "abc"}, {name: HIDDEN})
            for name in (
                "openai_key",
                "private_key",
                "x-api-key",
                "apiKey",
                "db_passwords",
                "passphrase",
                "github_token",
                "Authorization",
            )
        ),
    ],
)
def test_secrets_are_hidden(value, shown):
    assert without_secrets(value) == shown


@pytest.mark.parametrize(
    "values",
    [
        {f"judge_{API_KEY}_var": "OPENAI", "max_tokens": 5, "token": "a", "eos_token": "</s>"},
        {"password": "", API_KEY: None, "servers": ["http://host:8000"]},
        {"answer_key": "a", "key": "b", "monkey": "c", "tokenizer": "d", "stop_tokens": ["e"]},
        {"page": "http://host/me@here", "secretary": "f", "key_column": "g", "num_keys": 3},
        {"stop": ["a:b@c", "sk-1"], "model": "Qwen/Qwen2.5-1.5B", "hf_": 3},
    ],
)
def test_what_is_no_secret_is_shown(values):
    assert without_secrets(values) == values


def test_keys_of_trackers_are_not_in_the_run_folder_nor_on_the_page(tmp_path, monkeypatch):
    key = "k3y-0f-a-tracker"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY"):
        monkeypatch.setenv(name, key)
    out = tmp_path / "out"
    run(out, "--tracking.trackers=tensorboard")
    assert main(["report", str(out)]) == 0
    assert any("tfevents" in path.name for path in out.rglob("*"))
    assert files_with(key, out) == []


def files_with(text: str, folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_secrets_of_an_evaluation_are_not_written_and_it_goes_on(
    byte_model, math_file, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["eval", str(byte_model), "--data", str(math_file), "--out", str(out), "--k=1"]
    words += ["--sampling.max_completion_length=2", "--policy.device=cpu", "--data.max_rows=2"]
    words += ["--data.options", f"{{env: {{judge_{API_KEY}: sup3rs}}}}"]
    assert main(words) == 0
    # As an earlier version wrote it.
    settings = (out / "settings.json").read_text()
    (out / "settings.json").write_text(settings.replace(HIDDEN, "sup3rs"))
    assert main(words) == 0
    (out / "settings.json").write_text(settings)
    shown = capsys.readouterr()
    assert "2 prompts evaluated before" in shown.err
    assert HIDDEN in shown.out
    assert "sup3rs" not in shown.out + shown.err
    assert files_with("sup3rs", out) == []


def test_secrets_of_a_comparison_are_not_written_and_it_goes_on(tmp_path, capsys):
    out, one = tmp_path / "out", {"data.options": {f"judge_{API_KEY}": "sup3rs"}}
    compared = {"output_dir": str(out), "seeds": [0], "jobs": 1, "tasks": {"one": one}}
    text = json.dumps({"compare": {**compared, "arms": {"even": {}}}})
    (tmp_path / "study.yaml").write_text(text)
    small = [
        *options(tmp_path)[1:],
        *PILOT_FREE,
        "--policy.warm_start.updates=1",
        "--train.steps=1",
    ]
    words = ["compare", str(tmp_path / "study.yaml"), *small]
    assert main([*words, "--json"]) == 0
    first = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert capsys.readouterr().out == first
    assert HIDDEN in (out / "study.json").read_text()
    assert files_with("sup3rs", out) == []


def test_secrets_of_an_old_run_are_not_on_the_page(tmp_path):
    path = make_run(tmp_path / "run", verify={API_KEY: "sup3rs"})
    assert main(["report", str(path), "--out", str(tmp_path / "page")]) == 0
    assert files_with("sup3rs", tmp_path / "page") == []
    assert reported_run(path).setting(f"verify.{API_KEY}") == HIDDEN
