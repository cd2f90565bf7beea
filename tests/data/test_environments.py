"""Single-turn environments of the package verifiers, with the real package."""

from __future__ import annotations

import json
import pickle
import signal
from functools import partial

import pytest

pytest.importorskip(
    "verifiers.envs.singleturn_env", reason="the package verifiers is not installed"
)

from dibs.config import DataConfig, VerifyConfig
from dibs.config.load import load_config
from dibs.data.environments import EnvironmentAnswer, environment_questions
from dibs.data.prompts import build_prompts, read_questions
from dibs.files import read_lines
from dibs.model.pretrained import load_tokenizer
from dibs.rollouts.verify.verifiers import build_verifier
from dibs.runs.console import NoView
from dibs.runs.evaluation import run_evaluation
from dibs.types import InputError, Verdict
from tiny_runs import drawn, whole_and_resumed

TINY = "verifiers:tiny_environment"


def judged(*completions: str, row: int = 2, **options: float) -> list[Verdict]:
    """Verdicts on completions of a row, whose answer is twice its number and one more."""
    gold = list(environment_questions(TINY, {}))[row].answer
    verifier = build_verifier(VerifyConfig(**options), TINY)
    try:
        return list(verifier.verdicts((gold, text) for text in completions))
    finally:
        verifier.close()


def test_questions_are_messages_with_the_system_prompt():
    questions = list(environment_questions(TINY, {"tiny_environment": {"size": 3}}))
    assert [(q.text, q.answer) for q in questions] == [("1+1=", "2"), ("2+2=", "4"), ("3+3=", "6")]
    assert questions[0].messages == (("system", "Add."), ("user", "1+1="))


def test_prompts_end_in_the_open_turn_of_the_assistant(byte_model):
    config = DataConfig(train=TINY, options={"tiny_environment": {"size": 20}}, eval_size=2)
    tokenizer = load_tokenizer(str(byte_model), {})
    prompts = build_prompts(read_questions(config, 0), config, tokenizer, 0)
    assert (len(prompts.train), len(prompts.eval)) == (18, 2)
    assert not {p.text for p in prompts.train} & {p.text for p in prompts.eval}
    assert prompts.train[0].text.startswith("<|im_start|>system\nAdd.<|im_end|>")
    assert isinstance(prompts.train[0].answer, EnvironmentAnswer)


def test_an_evaluation_set_of_its_own_is_held_out(byte_model):
    options = {"tiny_environment": {"size": 20, "held_out": 5}}
    config = DataConfig(train=TINY, options=options)
    tokenizer = load_tokenizer(str(byte_model), {})
    prompts = build_prompts(read_questions(config, 0), config, tokenizer, 0)
    assert [p.answer for p in prompts.eval] == ["40", "42", "44", "46", "48"]
    assert len(prompts.train) == 19  # 20+20= is in both
    assert prompts.dropped == {"also in the evaluation set": 1}


def test_the_reward_is_the_sum_of_the_rubric():
    right, wrong, long = judged("6", "7", "it is 6")
    assert (right.reward, right.status) == (pytest.approx(1.253), "accepted")
    assert (wrong.reward, wrong.status) == (pytest.approx(0.253), "rejected")
    assert long.reward == pytest.approx(0.003)
    assert judged("7", accept_threshold=0.25)[0].status == "accepted"


def test_verdicts_come_in_order_whatever_they_are():
    verdicts = judged("6", "raise", "wait", "nan", "7", timeout=0.3)
    assert [v.status for v in verdicts] == ["accepted", "error", "timeout", "error", "rejected"]
    assert "I do not know" in verdicts[1].reason
    assert len(judged(*["6"] * 200)) == 200


def test_an_answer_survives_the_way_to_another_process():
    gold = next(environment_questions(TINY, {})).answer
    again = pickle.loads(pickle.dumps(gold))
    assert isinstance(gold, EnvironmentAnswer)
    assert (again, again.environment, again.row) == (gold, gold.environment, gold.row)


def test_signals_stay_ours():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    next(environment_questions(TINY, {"tiny_environment": {"size": 7}}))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("verifiers:not_there", {}, "verifiers:not_there cannot be loaded"),
        (TINY, {"tiny_environment": {"sizes": 3}}, "cannot be loaded: .*sizes"),
        (TINY, {"tiny_environment": {"kind": "group"}}, "rewards whole groups"),
        (TINY, {"tiny_environment": {"kind": "turns"}}, "is a Turns; DIBS takes single-turn"),
        (TINY, {"tiny_environment": 3}, "must hold keys and values"),
        (TINY, {"other": {}}, "options has 'other', but data.train names tiny_environment"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(source, options, message):
    with pytest.raises(InputError, match=message) as error:
        read_questions(DataConfig(train=source, options=options), 0)
    assert "\n" not in str(error.value)


def words(byte_model, out, **more: str) -> dict[str, str]:
    return {
        "policy.model": str(byte_model),
        "policy.device": "cpu",
        "data.train": TINY,
        "data.options": json.dumps({"tiny_environment": {"size": 20, "held_out": 4}}),
        "sampling.max_completion_length": "6",
        "algorithm.name": "grpo",
        "allocate.allocator": "uniform",
        "allocate.num_generations": "4",
        "estimate.mode": "none",
        "train.steps": "2",
        "train.prompts_per_step": "4",
        "checkpoint.interval": "1",
        "output_dir": str(out),
        **more,
    }


def test_a_run_and_its_resumption_see_the_same_prompts_and_rewards(byte_model, tmp_path):
    whole, parts = whole_and_resumed(partial(words, byte_model), tmp_path)
    assert drawn(whole, "prompt_id", "reward") == drawn(parts, "prompt_id", "reward")
    # Random texts are wrong, but the rubric gives every one its row's bonus.
    assert read_lines(whole / "metrics.jsonl")[1]["reward"] > 0


def test_a_model_is_evaluated_on_it(byte_model, tmp_path):
    config = load_config(None, words(byte_model, tmp_path))
    result = run_evaluation(config, [TINY], 1, 1, None, NoView())
    assert result["benchmarks"][0]["prompts"] == 4
