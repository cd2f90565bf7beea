"""How questions become text to be continued, with tokenizers and templates as users bring them."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from dibs.cli import main
from dibs.config import DataConfig
from dibs.data.questions import Question
from dibs.data.rendering import Renderer
from dibs.types import InputError
from odd_models import CHATML, byte_tokenizer, questions_file, save_model, small_run

CLOCK = datetime(2024, 7, 26)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
UNOPENED = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def tokens(tokenizer, question: Question, **options) -> list[str]:
    _, ids = Renderer(DataConfig(**options), tokenizer, CLOCK)(question)
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>"])
def test_what_a_tokenizer_writes_after_a_text_is_taken_off_prompts(end):
    """Also where it is not the token that ends a completion."""
    render = Renderer(DataConfig(), byte_tokenizer(appends=end), CLOCK)
    for text in ("hm", "1"):
        _, ids = render(Question(text, "7"))
        assert render.tokenizer.decode(ids) == f"<s>{text}"
    assert render.notes == [
        f"The tokenizer ends a text with '{end}'; that is taken off prompts, since the policy is to "
        "continue them."
    ]


def test_a_text_that_ends_in_the_end_itself_is_continued_before_it():
    assert tokens(byte_tokenizer(), Question("ab", "7"), template="{prompt}</s>") == ["a", "b"]


def test_a_plain_tokenizer_changes_nothing():
    render = Renderer(DataConfig(), byte_tokenizer(), CLOCK)
    assert render.tokenizer.decode(render(Question("ab", "7"))[1]) == "ab"
    assert render.notes == []


@pytest.mark.parametrize("template", ["{{ bos_token }}" + CHATML, None])
def test_a_text_begins_once(template):
    """A template writes the beginning of the text itself, and the tokenizer does so for plain text."""
    tokenizer = byte_tokenizer(chat_template=template, appends="</s>")
    tokenizer.bos_token = "<s>"
    written = tokens(tokenizer, Question("ab", "7"))
    assert written[0] == "<s>"
    assert written.count("<s>") == 1
    assert "</s>" not in written


def test_a_template_that_ends_in_the_end_is_refused():
    with pytest.raises(
        InputError, match=r"ends the prompt 'ab' in the end-of-sequence token '</s>'"
    ):
        tokens(byte_tokenizer(chat_template=UNOPENED), Question("ab", "7"))


@pytest.mark.parametrize("begun", ["<think>\n", "Let me see: ", "x"])
@pytest.mark.parametrize("content", ["m['content']", "m['content'] | trim"])
def test_a_begun_turn_of_the_assistant_is_continued(begun, content):
    tokenizer = byte_tokenizer(chat_template=CHATML.replace("m['content']", content))
    messages = (("user", "q"), ("assistant", begun))
    text, ids = Renderer(DataConfig(), tokenizer, CLOCK)(Question("q", "7", messages))
    assert text == f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{begun}"
    assert tokenizer.decode(ids) == text
    closed = Renderer(DataConfig(), tokenizer, CLOCK)(Question("q", "7", (("user", "q"),)))
    assert closed[0] == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_hides_the_begun_turn_is_one_line():
    tokenizer = byte_tokenizer(chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(InputError, match="cannot encode the prompt 'q'"):
        tokens(tokenizer, Question("q", "7", (("user", "q"), ("assistant", "<think>"))))


def test_the_clock_of_a_template_is_the_runs():
    render = Renderer(DataConfig(), byte_tokenizer(chat_template=DATED), CLOCK)
    text, _ = render(Question("q", "7"))
    assert text.startswith("26 Jul 2024\n<|im_start|>user")
    assert "2024-07-26 in all prompts" in render.notes[0]


def test_the_last_tokens_of_prompts_are_shown(tmp_path, capsys):
    byte_tokenizer(appends="</s>").save_pretrained(tmp_path / "model")
    words = [f"--policy.model={tmp_path / 'model'}", f"--data.train={questions_file(tmp_path)}"]
    assert main(["data", *words]) == 0
    shown = capsys.readouterr().out
    assert "last tokens: 'Ġ' '+' 'Ġ' '1' '?'" in shown
    assert shown.count("The tokenizer ends a text with '</s>'") == 1
    assert main(["data", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"][0]["last_tokens"] == ["Ġ", "+", "Ġ", "1", "?"]
    assert len([note for note in told["notes"] if "ends a text with '</s>'" in note]) == 1


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 1, 1)


def test_a_resumed_run_keeps_its_prompts(tmp_path, capsys, monkeypatch):
    """The date of the template is that of the start; other prompts are refused."""
    model = save_model(tmp_path / "model", byte_tokenizer(chat_template=DATED))
    data = questions_file(tmp_path)
    words = [*small_run(model, data, tmp_path / "run"), "--checkpoint.interval=1"]
    assert main(words) == 0
    first = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-000001" / "state.json").read_text()
    )
    again = [*words, "--train.steps=2", "--resume=yes", "--allow_changes=true"]
    monkeypatch.setattr("dibs.runs.prompts_mark.datetime", Tomorrow)
    assert main(again) == 0
    last = json.loads((tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").read_text())
    for key in ("prompts_clock", "prompts_hash"):
        assert last[key] == first[key]
    assert "Since the run is allowed to change" not in capsys.readouterr().out
    data.write_text(data.read_text().replace("What", "Which number"))
    third = [*words, "--train.steps=3", "--resume=yes"]
    assert main([*third, "--allow_changes=true"]) == 0
    assert "the prompts are others than those of" in " ".join(capsys.readouterr().out.split())
    data.write_text(data.read_text().replace("Which number", "What"))
    assert main([*words[:-1], "--checkpoint.interval=2", "--train.steps=3", "--resume=yes"]) == 0


def test_other_prompts_are_refused_unless_changes_are_allowed(tmp_path):
    from dibs.config import Config
    from dibs.runs.checkpoints import Checkpoint
    from dibs.runs.console import NoView
    from dibs.runs.prompts_mark import PromptsMark

    mark = PromptsMark(CLOCK, "aa")
    mark.compare(Checkpoint(tmp_path, {}), Config(), NoView())
    mark.compare(Checkpoint(tmp_path, {"prompts_hash": "aa"}), Config(), NoView())
    other = Checkpoint(tmp_path, {"prompts_hash": "bb"})
    with pytest.raises(InputError, match=r"the prompts are others than those of .*allow_changes"):
        mark.compare(other, Config(), NoView())


def test_prompts_as_the_paper_evaluates_on_them(byte_model):
    """The keys that docs/evaluation.md gives make the messages of its evaluation script."""
    from transformers import AutoTokenizer

    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    given = dict(re.findall(r"--data\.(system_prompt|template) ['\"](.*?)['\"] \\\n", page))
    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    boxed = r"final answer within \boxed{}"
    messages = [
        {"role": "system", "content": f"Please reason step by step, and put your {boxed}."},
        {"role": "user", "content": f"1 + 1? Let's think step by step and output the {boxed}"},
    ]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    renderer = Renderer(DataConfig(**given), tokenizer)
    assert renderer(Question("1 + 1?", "2"))[0] == wanted
