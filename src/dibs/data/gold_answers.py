"""A gold answer with more to it than its text: other accepted forms, and other columns of its row.

It is a text, so that whatever shows, hashes or compares answers needs to know nothing of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class GoldAnswer(str):
    """An answer, the forms of it that are accepted, and the columns that the user's verifier gets.

    ``forms``: at least one. ``columns``: of ``data.columns``, by name.
    """

    __slots__ = ("columns", "forms")
    forms: tuple[str, ...]
    columns: Mapping[str, Any]

    def __new__(
        cls, text: str, forms: tuple[str, ...] = (), columns: Mapping[str, Any] | None = None
    ) -> GoldAnswer:
        """The answer ``text``, which is the only form where no others are given."""
        made = super().__new__(cls, text)
        made.forms = forms or (text,)
        made.columns = {} if columns is None else columns
        return made

    def __reduce__(self) -> tuple[type[GoldAnswer], tuple[str, tuple[str, ...], Mapping[str, Any]]]:
        """How pickle makes it again."""
        return GoldAnswer, (str(self), self.forms, self.columns)


def forms_of(answer: str) -> tuple[str, ...]:
    """All accepted forms of an answer."""
    return answer.forms if isinstance(answer, GoldAnswer) else (answer,)


def columns_of(answer: str) -> Mapping[str, Any]:
    """The other columns of an answer's row."""
    return answer.columns if isinstance(answer, GoldAnswer) else {}
