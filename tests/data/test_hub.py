"""A hub that cannot be reached is noticed at once, and said with what to do."""

from __future__ import annotations

import os
import socket
import time

import pytest

from dibs.cli import main
from dibs.data import hub


@pytest.fixture
def nowhere(monkeypatch):
    """No host has a name here, whatever machine the test runs on."""
    import datasets.config
    import huggingface_hub.constants

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub, "getproxies", dict)
    hub._is_reachable.cache_clear()
    for key in hub._OFFLINE:
        monkeypatch.setenv(key, "0")  # so that it is restored at the end
        monkeypatch.delenv(key)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    yield
    hub._is_reachable.cache_clear()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["data", "--policy.model=some/model"], "the folder of a model"),
        (["eval", "some/model", "--data={}"], "the folder of a model"),
        (["data", "--data.train=some/questions"], "a file"),
        (["data", "--data.train=gsm8k"], "a file"),
    ],
    ids=["tokenizer", "model", "data", "known data"],
)
def test_a_hub_that_cannot_be_reached(nowhere, tmp_path, capsys, words, what):
    started = time.monotonic()
    (tmp_path / "q.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    assert main([word.format(tmp_path / "q.jsonl") for word in words]) == 2
    error = capsys.readouterr().err
    assert f"huggingface.co cannot be reached from here: give {what} on this machine" in error
    assert "Retrying" not in error
    assert time.monotonic() - started < 20  # one round of its retries takes 23 s


def test_what_is_on_this_machine_needs_no_hub(nowhere, tmp_path):
    assert hub.without_hub(str(tmp_path), "a file") == ""
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_proxy_may_know_the_hub(nowhere, monkeypatch):
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.without_hub("some/model", "a file") == ""
