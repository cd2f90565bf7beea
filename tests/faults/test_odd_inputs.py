"""No traceback for what a user brings: mutated models, files and verifiers, and odd combinations."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from dibs.cli import main
from odd_models import (
    CHATML,
    SPECIAL,
    byte_tokenizer,
    questions_file,
    save_model,
    small_evaluation,
    small_run,
)

BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 261,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED = {**BASE, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 16}
GEMMA = {**GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 64}
EXPERTS = {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 2}
ROWS = [{"prompt": f"What is {i} + 1?", "answer": i + 1} for i in range(20)]
DATED = "{{ strftime_now('%d') }}" + CHATML
STERN = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML


def lines(rows: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def table(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def begun(rows: list[dict]) -> list[dict]:
    turn = {"role": "assistant", "content": "<think>\n"}
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}, turn]} for row in rows]


COMBINATIONS: dict[str, tuple[Any, Any, str, bytes, Any]] = {
    "gemma2, appended end": (
        Gemma2Config(**GEMMA),
        {"appends": "</s>"},
        "a.jsonl",
        lines(ROWS),
        (),
    ),
    "gpt2, no pad, csv.gz": (
        GPT2Config(**BASE, n_positions=512),
        {"pad": None},
        "a.csv.gz",
        gzip.compress(table(ROWS)),
        (),
    ),
    "opt, turns end otherwise, columns": (
        OPTConfig(**BASE, ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=512),
        {"chat_template": CHATML},
        "a.json",
        json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}).encode(),
        (),
    ),
    "neox, jsonl.gz": (
        GPTNeoXConfig(**BASE, intermediate_size=64),
        {},
        "a.jsonl.gz",
        gzip.compress(lines(ROWS)),
        (),
    ),
    "bloom, begun turns": (
        BloomConfig(**BASE),
        {"chat_template": CHATML},
        "a.ndjson",
        lines(begun(ROWS)),
        (),
    ),
    "experts, one at a time": (
        MixtralConfig(**EXPERTS),
        {},
        "a.json",
        lines(ROWS),
        ("--estimate.grad_norm=exact_slow",),
    ),
    "gemma3, dated": (
        Gemma3TextConfig(**GEMMA),
        {"chat_template": DATED},
        "a.json",
        json.dumps({"data": ROWS}).encode(),
        (),
    ),
    "llama, answers in a list": (
        LlamaConfig(**GROUPED),
        {"special": (*SPECIAL[:4], "<|end|>")},
        "a.jsonl",
        lines([{**row, "answer": [row["answer"], 0.5]} for row in ROWS]),
        (),
    ),
    "phi, stop text, a bad row": (
        PhiConfig(**BASE, intermediate_size=64),
        {},
        "a.csv",
        table(ROWS) + "caf\xe9,1\n".encode("latin-1"),
        ("--data.max_bad_rows=1", "--sampling.stop=e"),
    ),
    "qwen2, adapters, mixed": (
        Qwen2Config(**{key: value for key, value in GROUPED.items() if key != "head_dim"}),
        {},
        "a.gz",
        gzip.compress(lines(ROWS)),
        ("--policy.lora.rank=2", "--policy.dtype=mixed"),
    ),
    "experts, all at once": (
        MixtralConfig(**EXPERTS),
        {},
        "a.jsonl",
        lines(ROWS),
        "exact_slow (one",
    ),
    "llama, system message refused": (
        LlamaConfig(**GROUPED),
        {"chat_template": STERN},
        "a.jsonl",
        lines(ROWS),
        "TemplateError: none",
    ),
}
"""Architecture, tokenizer, file, content, and further words or the error that is expected."""
NORMS = (
    "--estimate.mode=pilot",
    "--estimate.num_pilots=2",
    "--estimate.grad_norm=exact",
    "--allocate.allocator=min_variance",
    "--algorithm.beta=0.01",  # so that rejected completions count as well
)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations_of_model_tokenizer_and_file(tmp_path, capsys, name):
    config, tokenizer, file, content, more = COMBINATIONS[name]
    refused = isinstance(more, str)
    words = ("--data.template=think",) if refused else more
    model = save_model(tmp_path / "model", byte_tokenizer(**tokenizer), config)
    (tmp_path / file).write_bytes(content)
    run = tmp_path / "run"
    assert main(small_run(model, tmp_path / file, run, *NORMS, *words)) == (2 if refused else 0)
    if refused:
        assert str(more) in capsys.readouterr().err
        return
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["sampler_gap_max"] < (0.1 if "mixed" in name else 1e-4)


MODELS = st.fixed_dictionaries(
    {
        "eos": st.sampled_from([None, "</s>", "<|im_end|>"]),
        "pad": st.sampled_from([None, "<pad>", "</s>"]),
        "appends": st.sampled_from([None, "</s>", "<|im_end|>"]),
        "chat_template": st.sampled_from(
            [None, CHATML, STERN, DATED, "{{ nothing.at.all }}", "{%"]
        ),
    }
)
SIZES = st.sampled_from([None, 40, 256, 261, 300])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
ENDS = st.sampled_from([None, 1, [1, 4], [9000], -1])
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FILES = st.binary(max_size=40) | st.lists(
    st.fixed_dictionaries({}, optional={"prompt": CELLS, "answer": CELLS}), max_size=4
)
NAMES = st.sampled_from(
    ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.gz", "a.csv.gz", "a.json.gz"]
)
MANY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def fits(words: list[str], capsys) -> None:
    """The command ends well, or with one line."""
    capsys.readouterr()
    status = main(words)
    shown = capsys.readouterr()
    assert status in (0, 2), shown.err
    assert "Traceback" not in shown.err
    if status == 2:
        assert [line for line in shown.err.splitlines() if line.startswith(f"dibs {words[0]}: ")]


@pytest.mark.slow
@MANY
@given(MODELS, SIZES, DTYPES, ENDS)
def test_mutated_models_end_well_or_in_one_line(
    tmp_path_factory, capsys, tokens, size, dtype, ends
):
    folder = tmp_path_factory.mktemp("odd")

    def change(model) -> None:
        model.to(dtype)

    sizes = {} if size is None else {"vocab_size": size}
    model = save_model(
        folder / "model", byte_tokenizer(**tokens), eos_ids=ends, change=change, **sizes
    )
    data = questions_file(folder)
    fits(small_run(model, data, folder / "run", *NORMS), capsys)
    fits(small_evaluation(model, data), capsys)
    fits(["variance", *small_run(model, data, folder / "none")[1:]], capsys)
    words = [f"--policy.model={model}", f"--data.train={data}", "--train.prompts_per_step=2"]
    fits(["data", *words], capsys)


def written(folder: Path, name: str, content: bytes | list[dict]) -> Path:
    path = folder / name
    raw = content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.slow
@MANY
@given(FILES, NAMES, st.integers(0, 3))
def test_mutated_files_end_well_or_in_one_line(tmp_path_factory, capsys, content, name, bad_rows):
    folder = tmp_path_factory.mktemp("odd")
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder / "model")
    path = written(folder, name, content)
    words = [f"--policy.model={folder / 'model'}", f"--data.train={path}"]
    good = questions_file(folder)
    fits(["data", *words, f"--data.max_bad_rows={bad_rows}"], capsys)
    fits(["data", words[0], f"--data.train={good}", f"--data.eval={path}"], capsys)
    fits(["verify", str(path), "--verifier=exact"], capsys)
    fits(["allocate", str(path), "--budget=4"], capsys)


VERIFIERS = st.sampled_from(
    ["nothing", "silent", "sleepy", "missing", "partial", "os:getpid", "nowhere:at_all", "no", ":"]
)


@pytest.mark.slow
@settings(MANY, max_examples=9)
@given(VERIFIERS)
def test_mutated_verifiers_end_well_or_in_one_line(tmp_path_factory, capsys, name):
    folder = tmp_path_factory.mktemp("odd")
    model, data = save_model(folder / "model", byte_tokenizer()), questions_file(folder)
    verifier = name if ":" in name or name == "no" else f"own_verifiers:{name}"
    own = (f"--verify.verifier={verifier}", "--verify.workers=1")
    fits(small_run(model, data, folder / "run", *own), capsys)
    fits(small_evaluation(model, data, *own), capsys)
    rows = [{"completion": "\\boxed{7}", "answer": "7"}]
    path = written(folder, "rows.jsonl", rows)
    fits(["verify", str(path), f"--verifier={verifier}", "--workers=1"], capsys)
