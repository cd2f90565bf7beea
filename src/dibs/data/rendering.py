"""From one question to the text and the tokens that the policy continues."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

from dibs.config import TEMPLATES, DataConfig
from dibs.data.questions import Question
from dibs.files import one_line
from dibs.types import InputError


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@contextmanager
def _clock_of_templates(now: Callable[[], datetime]) -> Iterator[None]:
    """Within, the function ``strftime_now`` of chat templates writes the time that ``now()`` returns.

    transformers gives templates that function and lets nobody replace it, so its clock is replaced.
    """
    module: Any = sys.modules.get("transformers.utils.chat_template_utils")
    if module is None or not hasattr(module, "datetime"):
        yield
        return
    own = module.datetime
    module.datetime = type("datetime", (own,), {"now": staticmethod(lambda tz=None: now())})
    try:
        yield
    finally:
        module.datetime = own


class Renderer:
    """Renders questions as ``data`` says, all with the same clock.

    ``notes``: what the user should know of the prompts rendered so far, each said once.

    Args:
        clock: the time that a chat template writes, where it asks for one. A run keeps that of its
            start, so that its prompts stay the same when it is resumed. None: now.
    """

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, clock: datetime | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.clock = datetime.now() if clock is None else clock
        self.notes: list[str] = []
        self.templated = bool(config.chat_template and tokenizer.chat_template)
        self._appended: int | None = None

    def __call__(self, question: Question) -> tuple[str, list[int]]:
        """Text and tokens of a question. Raises InputError where the tokenizer cannot make them."""
        messages = self._messages(question)
        try:
            text = self._text(messages)
            # A chat template writes the special tokens itself.
            tokens = self.tokenizer.encode(text, add_special_tokens=not self.templated)
            if not self.templated:
                tokens = self._without_end(tokens)
        except Exception as error:
            raise InputError(
                f"the policy's tokenizer cannot encode the prompt {question.text[:40]!r} "
                f"({one_line(error)}); does policy.model fit {self.config.train}?"
            ) from error
        if tokens and tokens[-1] == self.tokenizer.eos_token_id:
            raise InputError(
                f"the chat template of policy.model ends the prompt {question.text[:40]!r} in the "
                f"end-of-sequence token {self._shown(tokens[-1:])}, after which there is nothing to "
                "continue; set data.chat_template to false, or give the tokenizer a template that opens "
                "the assistant's turn"
            )
        return text, tokens

    def _messages(self, question: Question) -> list[tuple[str, str]]:
        system, template = TEMPLATES.get(self.config.template, (None, self.config.template))
        system = system if self.config.system_prompt is None else self.config.system_prompt
        messages = list(question.messages)
        # Where an answer was begun after it, the question cannot be wrapped in the template.
        if not messages or messages[-1][0] == "user":
            messages[-1:] = [("user", template.replace("{prompt}", question.text))]
        if system and not any(role == "system" for role, _ in messages):
            messages.insert(0, ("system", system))
        return messages

    def _text(self, messages: list[tuple[str, str]]) -> str:
        if not self.templated:
            return "\n\n".join(content for _, content in messages)
        role, content = messages[-1]
        begun = role == "assistant"
        with _clock_of_templates(self._now):
            text: str = self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=not begun,
                continue_final_message=begun,
                tokenize=False,
            )
        # Templates take white space off the end of a turn, but a begun turn goes on right after it.
        if begun and not text.endswith(content) and text.endswith(content.rstrip()):
            text += content[len(content.rstrip()) :]
        return text

    def _now(self) -> datetime:
        """The time at the clock, for a chat template that asks for it."""
        self._note(
            f"The chat template writes the date. It is that of {self.clock:%Y-%m-%d} in all prompts, "
            "also when the run is resumed later."
        )
        return self.clock

    def _without_end(self, tokens: list[int]) -> list[int]:
        """Tokens of a text without those that the tokenizer writes after it, and without its end."""
        if self._appended is None:
            self._appended = self._count_appended()
        kept = len(tokens) - self._appended
        while kept > 1 and tokens[kept - 1] == self.tokenizer.eos_token_id:
            kept -= 1
        if kept < len(tokens):
            self._note(
                f"The tokenizer ends a text with {self._shown(tokens[kept:])}; that is taken off "
                "prompts, since the policy is to continue them."
            )
        return tokens[:kept]

    def _count_appended(self) -> int:
        """How many tokens the tokenizer's post-processor writes after a text."""
        sample = "1"
        bare = self.tokenizer.encode(sample, add_special_tokens=False)
        whole = self.tokenizer.encode(sample, add_special_tokens=True)
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return len(whole) - len(bare) - start
        return 0

    def _shown(self, tokens: list[int]) -> str:
        return repr(str(self.tokenizer.decode(tokens)))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
