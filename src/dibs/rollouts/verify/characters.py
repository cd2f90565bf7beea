"""Characters of any script as plain text and LaTeX, by NFKC and a table.

The table goes first where NFKC loses meaning: it makes ``x²`` to ``x2`` and ``½`` to ``1⁄2``.
"""

from __future__ import annotations

import re
import unicodedata

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ϵ": "epsilon",
    "ζ": "zeta", "η": "eta", "θ": "theta", "ϑ": "theta", "ι": "iota", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi",
    "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi",
    "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_COMMANDS = {
    "×": "times", "✕": "times", "⨯": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot",
    "•": "cdot", "∗": "cdot", "÷": "div", "±": "pm", "∓": "mp", "∞": "infty",
    "≤": "le", "⩽": "le", "≦": "le", "≥": "ge", "⩾": "ge", "≧": "ge", "≠": "ne",
    "≈": "approx", "≃": "approx", "≅": "cong", "≡": "equiv", "∼": "sim", "∪": "cup",
    "∩": "cap", "∈": "in", "∉": "notin", "∅": "emptyset", "⌀": "emptyset", "∖": "setminus",
    "ℝ": "mathbb{R}", "ℤ": "mathbb{Z}", "ℚ": "mathbb{Q}", "ℕ": "mathbb{N}",
    "ℂ": "mathbb{C}", "°": "degree", "º": "degree", "˚": "degree", "∠": "angle",
    "△": "triangle", "→": "to", "⇒": "implies", "⟹": "implies", "∨": "lor", "∧": "land",
    "√": "sqrt", "∛": "sqrt[3]", "∜": "sqrt[4]", "∑": "sum", "∏": "prod", "∫": "int",
    "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "⟨": "langle",
    "⟩": "rangle", "〈": "langle", "〉": "rangle", "…": "ldots", "⋯": "ldots",
    "∴": "therefore", "✓": "checkmark", "✔": "checkmark", "✅": "checkmark",
    "■": "blacksquare", "∎": "blacksquare", "□": "square", "ℓ": "ell", "∣": "mid",
    "€": "euro", "£": "pounds", "¥": "yen", "∥": "parallel", "⊥": "perp",
}  # fmt: skip
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "⁄": "/", "∕": "/",
    "’": "'", "‘": "'", "′": "'", "″": "''", "“": '"', "”": '"', "。": ".", "、": ",",
    "，": ",", "《": "", "》": "", "【": "[", "】": "]", "「": "", "」": "",
    "٫": ".", "٬": ",", "∶": ":", "﹪": "%", "٪": "%",
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")
_ROOT = re.compile(r"(?<=[√∛∜])\s*(\d+(?:\.\d+)?|[^\W\d_])")
_TABLE = {ord(k): rf" \{v} " for k, v in {**_GREEK, **_COMMANDS}.items()}
_TABLE |= {ord(k): v for k, v in _PLAIN.items()}
_INVISIBLE = dict.fromkeys(
    [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF, 0xAD, 0]
)


def plain_characters(text: str) -> str:
    r"""The text in ASCII where there is a plain form: ``½`` is ``\frac{1}{2}``, ``√2`` ``\sqrt{2}``.

    Digits of any script become 0 to 9. Marks that cannot be seen are dropped.
    """
    if text.isascii():
        return text.translate(_INVISIBLE) if "\0" in text else text
    text = text.translate(_INVISIBLE)
    text = _ROOT.sub(r"{\1}", text)
    text = _RAISED_RUN.sub(lambda m: "^{" + "".join(_RAISED[c] for c in m[0]) + "}", text)
    text = _LOWERED_RUN.sub(lambda m: "_{" + "".join(_LOWERED[c] for c in m[0]) + "}", text)
    text = text.translate(_TABLE)
    if text.isascii():
        return text
    return "".join(c if c.isascii() else _plain(c) for c in text).translate(_TABLE)


def _plain(character: str) -> str:
    name = unicodedata.normalize("NFKC", character)
    above, slash, below = name.partition("⁄")
    if slash and above.isdigit() and below.isdigit():
        return rf"\frac{{{above}}}{{{below}}}"
    if len(name) == 1 and unicodedata.category(name) == "Nd":
        return str(unicodedata.decimal(name))
    return " " if name.isspace() else name
