"""Words behind an answer that say which numbers its letter stands for: ``7k + 5, k an integer``."""

from __future__ import annotations

from collections.abc import Sequence

from dibs.rollouts.verify.tokens import Token


def is_domain(tokens: Sequence[Token]) -> bool:
    r"""Whether tokens only say what numbers a letter stands for: ``k \in \mathbb{Z}``."""
    words = [token.text.lower() for token in tokens]
    while words and words[0] in ("where", "for", "with", "all", "any", "every", "some"):
        words.pop(0)
    if len(words) == 3 and words[1] == "in":
        return words[2] in ("mathbbz", "mathbbn", "mathbbr", "integers", "reals")
    return words[1:] in (["is", "an", "integer"], ["an", "integer"], ["is", "any", "integer"]) or (
        words in (["integer", "k"], ["integer", "n"], ["integers", "k"], ["integers", "n"])
    )


def is_of_integers(tokens: Sequence[Token]) -> bool:
    """Whether a domain leaves only whole numbers of an interval."""
    return not {"mathbbr", "reals"} & {token.text.lower() for token in tokens}


def domain_set_off(tokens: Sequence[Token]) -> Sequence[Token]:
    """Tokens with a comma before "for any integer k" at the end."""
    for n in range(max(1, len(tokens) - 8), len(tokens)):
        if tokens[n].text.lower() in ("where", "for", "with") and is_domain(tokens[n:]):
            return [*tokens[:n], Token("ch", ","), *tokens[n:]]
    return tokens
