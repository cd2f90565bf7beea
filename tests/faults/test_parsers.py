"""Whatever comes in, parsers and estimates either understand it or say one clear line."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dibs import allocate
from dibs.allocation.cross_fit import cross_fit
from dibs.allocation.posterior import expected_tokens, fit_posterior
from dibs.allocation.statistics import pilot_statistics
from dibs.allocation.statistics_file import read_statistics
from dibs.allocation.target import BASELINES, Target
from dibs.config import Config, DataConfig
from dibs.config.load import config_keys, load_config, split_config
from dibs.data.answers import clean, final_answer, same_text
from dibs.data.prompts import read_questions
from dibs.rollouts.verify.final_answer import find_answer
from dibs.rollouts.verify.judges import judge_choice, judge_exact, judge_numeric, judged
from dibs.types import InputError
from tiny_groups import make_group, make_prompt

relaxed = settings(
    max_examples=75,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def one_line(error: InputError) -> None:
    assert "\n" not in str(error)
    assert str(error)


@relaxed
@given(st.lists(st.sampled_from(["--seed", "--train.steps=3", "x.yaml", "--a.b", "1"]) | st.text()))
def test_command_lines(words):
    try:
        _, overrides = split_config(words)
        assert isinstance(load_config(None, overrides), Config)
    except InputError as error:
        one_line(error)


@relaxed
@given(st.sampled_from([key for key, _, _ in config_keys()]), st.text(max_size=12))
def test_values_of_every_key(key, text):
    try:
        load_config(None, {key: text})
    except InputError as error:
        one_line(error)


@relaxed
@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_config_files(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except InputError as error:
        one_line(error)


@relaxed
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("prompt_id", "trials", "successes", "grad_norm", "mean_tokens"), values
            ),
        ),
        max_size=4,
    )
    | st.binary(max_size=100)
)
def test_statistics_files(tmp_path, rows):
    path = tmp_path / "stats.jsonl"
    content = rows if isinstance(rows, bytes) else "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(content)
    try:
        stats = read_statistics(str(path))
    except InputError as error:
        one_line(error)
        return
    assert (np.asarray(stats.successes) <= np.asarray(stats.trials)).all()


@relaxed
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("prompt", "answer", "solution", "reward_model"), values),
        ),
        max_size=4,
    )
    | st.binary(max_size=100),
    st.sampled_from(["jsonl", "json", "csv"]),
)
def test_data_files(tmp_path, rows, kind):
    path = tmp_path / f"rows.{kind}"
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    try:
        questions = read_questions(DataConfig(train=str(path)), seed=0).train
    except InputError as error:
        one_line(error)
        return
    assert all(isinstance(q.text, str) and isinstance(q.answer, str) for q in questions)


pieces = st.sampled_from(
    [
        r"\boxed{",
        "}",
        "{",
        r"\frac",
        "1",
        "/",
        "2",
        ",",
        " or ",
        "$",
        r"\text{",
        ".",
        "e9",
        "-",
        "%",
        "B",
    ]
)


@relaxed
@given(st.lists(pieces | st.text(max_size=5), max_size=30).map("".join), st.text(max_size=10))
def test_answers_are_read_from_any_text(text, gold):
    for anywhere in (False, True):
        answer = final_answer(text, anywhere)
        assert answer is None or (answer and clean(answer) == answer)
    if answer is not None:
        assert same_text(answer, answer)
        found = find_answer(text, anywhere=True)
        if answer in found.readings and not found.several and not found.refused:
            assert judge_exact(answer, text, anywhere=True).status == "accepted"
    for judge in (judge_exact, judge_numeric, judge_choice):
        verdict = judged(judge, gold, text)
        known = verdict.status in ("accepted", "rejected", "no_answer")
        assert known or "the gold answer" in verdict.reason


rewards = st.lists(st.sampled_from([0.0, 1.0, 0.5, -2.0, 1e6]), min_size=2, max_size=6)


@relaxed
@given(
    st.lists(rewards, min_size=1, max_size=6),
    st.floats(1e-150, 1e150),
    st.floats(0, 3),
    st.integers(0, 60),
)
def test_estimates_and_counts_are_numbers(groups, scale, spread, budget):
    rng = np.random.default_rng(0)
    made = [make_group(r, make_prompt(f"{i:02d}")) for i, r in enumerate(groups)]
    norms = [scale * np.exp(rng.normal(0, spread, len(r))) for r in groups]
    estimate = cross_fit(made, norms)
    for stats in (estimate.stats, *(stream.stats for stream in estimate.parts)):
        posterior = fit_posterior(stats)
        assert ((posterior.accept_rate > 0) & (posterior.accept_rate < 1)).all()
        assert (expected_tokens(stats, 9.0) >= 1).all()
        for objective, baselines in BASELINES.items():
            for baseline in baselines:
                moment = posterior.second_moment(Target(objective, baseline))
                assert (np.isfinite(moment) & (moment >= 0)).all()
    stats = pilot_statistics(made, norms)
    counts = allocate(
        stats.trials,
        stats.successes,
        stats.grad_norm,
        grad_norm_rejected=stats.grad_norm_rejected,
        budget=budget,
    )
    assert counts.sum() == budget
    assert counts.min() >= 0
    assert not math.isnan(float(counts.sum()))


def test_model_code_and_pickles_are_not_run(tmp_path):
    """A checkpoint holds tensors and plain values only; code of a hub model needs trust_remote_code."""
    import torch

    from dibs.runs.checkpoints import Checkpoint
    from dibs.runs.folder import RunFolder

    assert load_config(None).policy.trust_remote_code is False

    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"updater": Attack()}, tmp_path / "trainer.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"Path\.touch|weights_only"):
        Checkpoint(tmp_path, {"step": 1}).trainer_state()
    assert not (tmp_path / "ran").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        RunFolder.check(tmp_path / "file", overwrite=True)
