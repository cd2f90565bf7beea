"""What a verifier is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from dibs.types import Verdict


class Verifier(Protocol):
    """Gives verdicts in the order of the items, ``(gold answer, completion text)``."""

    def verdicts(self, items: Iterable[tuple[str, str]]) -> Iterator[Verdict]: ...

    def close(self) -> None: ...
