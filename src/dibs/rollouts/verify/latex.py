"""LaTeX commands by what they mean for an answer: dress, another name of something, a function."""

from __future__ import annotations

from dibs.rollouts.verify.vocabulary import words

FONTS = words(
    """
    boldsymbol mathbf mathit mathsf mathtt mathnormal bm underline boxed fbox displaystyle emph
    pmb mathstrut overbrace underbrace hbox mathop mathord mathrel ensuremath
    """
)
TEXT_FONTS = words(
    """
    text textbf textit textrm textsf texttt textnormal textup mbox mathrm operatorname
    operatorname* textsc rm
    """
)
SWITCHES = words(
    """
    textstyle scriptstyle scriptscriptstyle tiny scriptsize footnotesize small
    normalsize large Large LARGE huge Huge bf it sf tt cal left right middle big Big bigg
    Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr limits nolimits quad qquad checkmark
    blacksquare square qed therefore because hfill nobreak newline par centering boldmath
    bfseries itshape noindent protect strut enspace thinspace medspace thickspace negthinspace ,
    ; : ! > /
    """
)
TAKE_ARGUMENT = words(
    """
    hspace vspace hspace* vspace* color phantom hphantom vphantom label tag
    """
)
TAKE_FIRST = frozenset(["textcolor", "colorbox", "href", "scalebox"])
BLOCKS = words(
    """
    aligned align align* alignedat equation equation* gather gathered gather* split center
    multline flushleft
    """
)
SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "geq": "ge", "leqslant": "le",
    "geqslant": "ge", "leqq": "le", "geqq": "ge", "neq": "ne", "lt": "<", "gt": ">", "land": "and",
    "wedge": "and", "lor": "or", "vee": "or", "lbrace": "{", "rbrace": "}", "dots": "ldots",
    "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "varnothing": "emptyset",
    "tg": "tan", "ctg": "cot", "iff": "implies", "Rightarrow": "implies",
    "Leftrightarrow": "implies", "Longrightarrow": "implies", "rightarrow": "implies",
    "longrightarrow": "implies", "to": "implies", "mapsto": "implies",
    "varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi", "vert": "|", "lvert": "|",
    "rvert": "|", "mid": "|", "Vert": "norm", "lVert": "norm", "rVert": "norm", "|": "norm",
    "ast": "cdot", "star": "cdot", "bullet": "cdot", "circ": "degree", "infin": "infty",
    "degrees": "degree", "simeq": "approx", "thickapprox": "approx", "doteq": "approx", "sim": "approx",
    "cong": "approx", "backslash": "setminus", "smallsetminus": "setminus", "lbrack": "[", "rbrack": "]",
    "nicefrac": "frac", "sfrac": "frac", "surd": "sqrt", "deg": "degree",
    "dbinom": "binom", "tbinom": "binom", "R": "reals", "Z": "integers", "imath": "i", "prime": "'",
    "colon": ":", "triangleq": "=", "coloneqq": "=", "overrightarrow": "vec",
}  # fmt: skip
MONEY = {
    "$": "dollar",
    "textdollar": "dollar",
    "euro": "euro",
    "pounds": "pound_money",
    "yen": "yen",
}
CHARACTERS = frozenset("<>{}|'[]:=")
GREEK = words(
    """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau
    upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
    """
)
FUNCTIONS = words(
    """
    sqrt sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth asin acos atan
    ln log lg exp max min gcd lcm abs floor ceil det Re Im arg
    """
)
SPELLED = {"infinity": "infty", "inf": "infty", "infinite": "infty", "emptyset": "emptyset"}
