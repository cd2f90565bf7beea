"""Tiny policies and data that the tests make themselves."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start too

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dibs.config import WarmStartConfig
from dibs.model.policy import Policy
from dibs.model.warm_start import build_model, build_tokenizer, warm_started_policy
from tiny_runs import EASY, EASY_WARM_START

torch.set_num_threads(1)
if find_spec("hypothesis"):  # the environments of plug-ins have none
    from hypothesis import settings

    # The same examples in every CI run, and no verdict by the clock of a busy machine.
    settings.register_profile("ci", derandomize=True, database=None, deadline=None)
    settings.register_profile("here", deadline=None)
    settings.load_profile("ci" if os.environ.get("CI") else "here")
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    # A job in the background ignores SIGINT, and so would all processes that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
collect_ignore_glob = [] if find_spec("trl") else ["with_trl/*"]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warm-started policies and data sets of the tests stay out of the user's cache.

    The workers of pytest-xdist share the folder, and one of them warms up the policy that most need;
    tests of plug-ins and of vLLM alone do without it.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own
    folder = shared / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["DIBS_CACHE"] = str(folder)
    os.environ["HF_DATASETS_CACHE"] = str(own / "datasets")
    if all(item.path.parent.name.startswith("with_") for item in request.session.items):
        return folder
    with FileLock(folder / ".lock"):
        warm_started_policy(EASY, WarmStartConfig(**EASY_WARM_START), lambda *_: None)
    return folder


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a module ``own_rules`` of functions and values; ``own_rules:rule`` names its function."""

    def offer(**members: object) -> str:
        module = ModuleType("own_rules")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, "own_rules", module)
        return "own_rules:rule"

    return offer


@pytest.fixture
def policy() -> Policy:
    """A random policy of the embedded task, 32 wide, tied embeddings."""
    tokenizer = build_tokenizer()
    model = build_model(WarmStartConfig(hidden_size=32, heads=2), tokenizer)
    return Policy(model.eval(), tokenizer)


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen2, a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("byte_model")
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def math_file(tmp_path: Path) -> Path:
    """Forty questions with LaTeX answers, JSON Lines, columns as in MATH."""
    path = tmp_path / "math.jsonl"
    rows = [{"problem": f"What is {i}/7?", "answer": f"\\frac{{{i}}}{{7}}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
