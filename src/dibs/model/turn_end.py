"""What ends a completion besides the end-of-sequence token: tokens and texts.

A base model whose chat template ends turns with another token than its end of sequence would write on
after its turn, and make up the next ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dibs.types import InputError

_MARK = "4f1d"
"""A turn that no template writes by itself."""


@dataclass(frozen=True)
class Stops:
    """Ends of a completion: ``tokens``, which belong to it but not to its text, and ``texts``.

    The tokens of a text that ends a completion belong to it too, since the policy wrote them; its own
    text stops before them.
    """

    tokens: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens that the longest of the texts can have, at a byte a token, with some to spare."""
        return max((len(text.encode()) for text in self.texts), default=0) + 8

    def found_in(self, text: str) -> int | None:
        """Where the first of the texts begins in a text; None where there is none."""
        places = [text.find(each) for each in self.texts]
        return min((place for place in places if place >= 0), default=None)

    def cut(self, tokenizer: Any, tokens: Sequence[int]) -> tuple[int, str] | None:
        """How many tokens of a completion reach to its end by a text, and the text before that end.

        None where no text ends it.
        """
        if not self.texts or self.found_in(decoded(tokenizer, tokens)) is None:
            return None
        length = 1 + bisect_left(
            range(1, len(tokens)),
            True,
            key=lambda n: self.found_in(decoded(tokenizer, tokens[:n])) is not None,
        )
        text = decoded(tokenizer, tokens[:length])
        return length, text[: self.found_in(text)]


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Tokens as text, without special tokens."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def stops_of(tokenizer: Any, given: Sequence[str | int] | None, chat: bool) -> Stops:
    """The ends that a configuration names.

    Args:
        given: texts and token numbers; a text that is one token of its own counts as that token. None:
            the token with which the chat template ends a turn.
        chat: whether prompts are rendered with the chat template.

    Raises InputError for a token that the tokenizer does not have.
    """
    if given is None:
        end = end_of_turn(tokenizer) if chat else None
        return Stops(() if end is None else (end,))
    tokens, texts = [], []
    own = tokenizer.get_added_vocab()
    for each in given:
        if isinstance(each, str) and each in own:
            tokens.append(own[each])
        elif isinstance(each, str):
            texts.append(each)
        elif each < len(tokenizer):
            tokens.append(each)
        else:
            raise InputError(
                f"sampling.stop {each}: the tokenizer has {len(tokenizer):,} tokens, numbered from 0"
            )
    return Stops(tuple(tokens), tuple(texts))


def end_of_turn(tokenizer: Any) -> int | None:
    """The token of its own with which the chat template ends the assistant's turn; None without one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template may refuse these turns, and prompts may be others
        return None
    _, found, after = text.rpartition(_MARK)
    if not found:
        return None
    own = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for token in tokenizer.encode(after, add_special_tokens=False):
        if token in own:
            return int(token)
        if tokenizer.decode([token]).strip():
            return None
    return None
