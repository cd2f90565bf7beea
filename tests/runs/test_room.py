"""What cannot fit into the machine's memory is refused before anything is drawn."""

from __future__ import annotations

import os

import pytest

from dibs.cli import main
from tiny_runs import WORDS

EVAL = ["eval", "arithmetic-easy", "--data=questions.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["variance", *WORDS, "--variance.num_generations=500"],
            "variance.num_generations 500 x 8 prompts = 4,000 completions at once do not fit",
        ),
        ([*EVAL, "--k=3000"], "k 3,000 and samples 3,000 = 3,000 completions at once do not fit"),
        ([*EVAL, "--samples=3000"], "k 1 and samples 3,000 = 3,000 completions at once do not"),
        (
            ["data", *WORDS, "--data.size=3000"],
            "data.size and data.grow = 3,000 prompts do not fit",
        ),
        (
            ["data", *WORDS, "--data.eval_size=3000"],
            "data.eval_size 3,000 = 3,000 prompts do not fit",
        ),
        (
            ["train", *WORDS, f"--allocate.num_generations={10**400}"],
            "completions at once do not fit",
        ),
        (["verify", "rows.jsonl", "--workers=257"], "verify.workers: must be at most 256"),
    ],
)
def test_sizes_that_cannot_fit_are_refused(words, said, monkeypatch, capsys):
    """On a machine with a megabyte of memory, which holds 2,000 completions of a token."""
    own = {"SC_PAGE_SIZE": 1_000_000, "SC_PHYS_PAGES": 1}
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: own.get(name) or real(name))
    assert main(words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
