"""Where a completion ends: the end of sequence, the template's end of turn, texts and other tokens."""

from __future__ import annotations

import json

import pytest

from dibs.cli import main
from dibs.config import PolicyConfig
from dibs.model.policy import Policy
from dibs.model.pretrained import load_policy
from dibs.model.turn_end import Stops, end_of_turn, stops_of
from dibs.rollouts.sampling.sampler import SampleRequest, as_completion, collected
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.rollouts.verify.judges import judge_exact
from dibs.rollouts.verify.verifiers import InlineVerifier, verified
from dibs.types import Completion, InputError, Prompt
from odd_models import CHATML, byte_tokenizer, questions_file, save_model, small_evaluation

LLAMA = (
    "{% for m in messages %}[INST] {{ m['content'] }} {% if loop.last %}</s>{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (LLAMA, "</s>"), (PLAIN, None), (None, None), ("{{ 1 / 0 }}", None)],
)
def test_the_templates_own_end_of_a_turn(template, end):
    tokenizer = byte_tokenizer(chat_template=template)
    found = end_of_turn(tokenizer)
    assert found == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    assert stops_of(tokenizer, None, chat=True).tokens == (() if end is None else (found,))
    assert stops_of(tokenizer, None, chat=False) == stops_of(tokenizer, [], chat=True) == Stops()


def test_given_stops():
    tokenizer = byte_tokenizer(chat_template=CHATML)
    number = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert stops_of(tokenizer, ["<|im_start|>", "ab", 3], chat=True) == Stops((number, 3), ("ab",))
    with pytest.raises(InputError, match=r"sampling.stop 999: the tokenizer has 261 tokens"):
        stops_of(tokenizer, [999], chat=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Policy:
    """A base model: its template ends turns with a token that is not its end of sequence."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, byte_tokenizer(chat_template=CHATML))
    return load_policy(PolicyConfig(model=str(folder), device="cpu"), 1.0)


def draw(policy: Policy, stops: Stops) -> list[Completion]:
    policy.stops = stops
    prompt = Prompt("00", "q", tuple(policy.tokenizer.encode("q")), "7")
    requests = [SampleRequest(prompt, 48, (0,))]
    (drawn,) = collected(requests, TransformersSampler(policy, 48, 2000).sample(requests))
    return drawn


def test_completions_end_where_a_turn_does(base):
    stops = stops_of(base.tokenizer, None, chat=True)
    (end,) = stops.tokens
    on, off = draw(base, Stops()), draw(base, stops)
    assert any(end in each.token_ids[:-1] for each in on)
    for one, other in zip(on, off, strict=True):
        ids = one.token_ids
        length = ids.index(end) + 1 if end in ids else len(ids)
        assert other.token_ids == ids[:length]
        assert other.sampling_logprobs == pytest.approx(one.sampling_logprobs[:length], abs=1e-4)
        assert other.finished == (ids[length - 1] in base.eos_ids)


def test_any_of_several_ends_of_sequence_ends_a_completion(tmp_path):
    """A generation config's list of ends, as Llama 3's, and the tokenizer's own end."""
    tokenizer = byte_tokenizer()
    listed = [tokenizer.convert_tokens_to_ids(end) for end in ("<|im_end|>", "<s>")]
    folder = save_model(tmp_path / "model", tokenizer, eos_ids=listed)
    policy = load_policy(PolicyConfig(model=str(folder), device="cpu"), 1.0)
    ends = [*listed, tokenizer.eos_token_id]
    assert policy.eos_ids == ends
    prompt = Prompt("00", "q", tuple(tokenizer.encode("q")), "7")
    requests = [SampleRequest(prompt, 200, (0,))]
    (drawn,) = collected(requests, TransformersSampler(policy, 64, 20_000).sample(requests))
    assert {each.token_ids[-1] for each in drawn if each.finished} == set(ends)
    for each in drawn:
        assert not set(each.token_ids[:-1]) & set(ends)
        assert each.finished == (each.token_ids[-1] in ends)


@pytest.mark.parametrize("texts", [("e",), ("a", "é", "7!")])
def test_completions_end_before_a_text(base, texts):
    """They are the beginnings of what is drawn without it."""
    on, off = draw(base, Stops()), draw(base, Stops(texts=texts))
    ended = 0
    for one, other in zip(on, off, strict=True):
        assert one.token_ids[: len(other.token_ids)] == other.token_ids
        assert not any(text in other.text for text in texts)
        if any(text in one.text for text in texts):
            ended += 1
            assert other.finished
            assert one.text.startswith(other.text)
            written = base.tokenizer.decode(other.token_ids, skip_special_tokens=True)
            assert any(written == other.text + text for text in texts)
        else:
            assert (other.text, other.finished) == (one.text, one.finished)
    assert ended > 3


def test_an_engine_that_writes_on_is_cut_at_the_end(base):
    """As vLLM does, which knows no texts here."""
    base.stops = Stops(texts=("</answer>", "User:"))
    tokens = [*base.tokenizer.encode("7</answer>\nUser: and 8?"), base.tokenizer.eos_token_id]
    found = as_completion(base, tokens, [-0.5] * len(tokens))
    assert found.text == "7"
    assert found.finished
    assert base.tokenizer.decode(found.token_ids) == "7</answer>"
    assert len(found.sampling_logprobs) == len(found.token_ids)


def test_a_box_in_an_unfinished_thought_is_no_answer_where_an_end_is_required():
    prompt = Prompt("00", "q", (1,), "7")
    texts = [("I guess \\boxed{7}, but", False), ("\\boxed{7}", True), ("\\boxed{8}", True)]
    drawn = [(0, i, Completion((1,), t, (0.0,), end)) for i, (t, end) in enumerate(texts)]
    for required, statuses in (
        (False, ["accepted", "accepted", "rejected"]),
        (True, ["no_answer", "accepted", "rejected"]),
    ):
        verifier = InlineVerifier(judge_exact)
        (group,) = verified(verifier, [prompt], drawn, 1.0, False, require_end=required)
        assert [rollout.status for rollout in group.rollouts] == statuses
        assert group.accepted.tolist() == [status == "accepted" for status in statuses]


def test_an_evaluation_with_stops(tmp_path, capsys):
    model = save_model(tmp_path / "model", byte_tokenizer(chat_template=CHATML))
    data = questions_file(tmp_path)
    more = ("--verify.require_end=true", '--sampling.stop=["</answer>", 5]', "--json")
    assert main(small_evaluation(model, data, *more)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["sampling.stop"] == ["</answer>", 5]
    (row,) = told["benchmarks"]
    assert row["statuses"] == {"no_answer": 3}
    assert main(small_evaluation(model, data, "--sampling.stop=User:", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["sampling.stop"] == ["User:"]
    assert main(small_evaluation(model, data, "--sampling.stop=9999")) == 2
    assert "sampling.stop 9999: the tokenizer has 261 tokens" in capsys.readouterr().err
    assert main(small_evaluation(model, data, '--sampling.stop=[""]')) == 2
    assert "ends nothing; give a text" in capsys.readouterr().err
