r"""From tokens to an expression: a parser by precedence that must use every token.

Products may be written without a sign. ``1\frac{1}{2}`` and ``1 1/2`` are mixed numbers. Functions take
the factors behind them: ``\sin 2x \cos y`` is a product of two functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from dibs.rollouts.verify.cursor import Cursor
from dibs.rollouts.verify.expressions import Node, number, times, with_index
from dibs.rollouts.verify.latex import FUNCTIONS
from dibs.rollouts.verify.tokens import Token, UnreadableError
from dibs.rollouts.verify.vocabulary import words

_DEEPEST = 60
_CALLED = words("f g h F G H O Theta Omega phi psi Phi")
"""Letters that name a function where a bracket follows."""
_MOST_MARKS = 8
"""Most exponents, factorials and signs of degrees behind one factor."""
_OPENING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_INVERSE = {f: f"arc{f}" for f in ("sin", "cos", "tan", "cot")}
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_SIGNS = ("+", "-", "pm", "mp")
_HALF_TURN = "deg"


def parse_expression(tokens: Sequence[Token]) -> Node:
    """The expression that all the tokens make. Raises UnreadableError where they make none."""
    parser = _Parser(tokens)
    node = parser.sum()
    node = parser.stacked(node)
    if parser.here is not None:
        raise UnreadableError(f"{parser.here.text!r} is left over")
    return node


class _Parser(Cursor):
    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise UnreadableError("brackets are nested too deeply")
        terms: list[Node] = []
        while True:
            sign = self.sign()
            if sign is None and terms:
                break
            term = self.product()
            if sign in ("pm", "mp"):
                term = Node("mul", (Node("sign", (), sign), term))
            terms.append(Node("neg", (term,)) if sign == "-" else term)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def sign(self) -> str | None:
        found = None
        while self.is_here(*_SIGNS):
            text = self.tokens[self.at].text
            self.at += 1
            if found is None or found == "+":
                found = text
            elif text == "-":
                found = {"-": "+", "pm": "mp", "mp": "pm"}[found]
            elif text in ("pm", "mp"):
                raise UnreadableError("two signs stand together")
        return found

    def product(self) -> Node:
        node = self.power()
        levels = 0
        while True:
            levels += node.op != "mul"
            if levels > _DEEPEST:
                raise UnreadableError("a product is too long")
            if self.take("cdot", "times", "*"):
                node = times(node, self.factor())
            elif self.take("/", "div"):
                node = Node("div", (node, self.factor()))
            elif self.take("bmod", "mod") or self.take_word("mod"):
                node = Node("mod", (node, self.factor()))
            elif self.starts_factor():
                node = self.beside(node)
            else:
                return node

    def factor(self) -> Node:
        sign = self.sign()
        node = self.power()
        if sign in ("pm", "mp"):
            raise UnreadableError("a sign stands inside a product")
        return Node("neg", (node,)) if sign == "-" else node

    def beside(self, node: Node) -> Node:
        """The product of a factor and the next one without a sign between, or a mixed number."""
        before, token = self.tokens[self.at - 1], self.tokens[self.at]
        whole = node.args[0] if node.op == "neg" else node
        if before.kind == "num" and token.kind == "num":
            part = self.plain_fraction()
            if part is None or whole.op != "num" or whole.value.denominator != 1:
                raise UnreadableError("two numbers stand side by side")
        else:
            if token.kind == "num" and before.text not in (")", "]", "}"):
                raise UnreadableError("a number stands behind a factor")
            part = self.power()
            is_part = part.op == "div" and all(each.op == "num" for each in part.args)
            proper = is_part and part.args[0].value < part.args[1].value
            if not (proper and before.kind == "num" and whole.op == "num" and token.text == "frac"):
                return times(node, part)
        if whole.value.denominator != 1:
            raise UnreadableError("a fraction stands behind a decimal")
        return Node("add", (node, part))

    def starts_factor(self) -> bool:
        token = self.here
        if token is None or token.kind in ("word", "env"):
            return False
        if token.kind in ("num", "sym"):
            return True
        if token.kind == "ch":
            if token.text in ("|", "norm"):
                return self.bars == 0
            return token.text in ("(", "[", "{")
        return token.text in _STARTING

    def power(self) -> Node:
        node = self.atom()
        for _ in range(_MOST_MARKS):
            if self.here is None:
                break
            if self.is_here("^"):
                node = self.raised(node)
            elif self.take("!"):
                if self.is_here("!"):
                    raise UnreadableError("a double factorial")
                node = Node("fact", (node,))
            elif self.take("degree"):
                node = Node(_HALF_TURN, (node,))
            else:
                break
        return node

    def raised(self, base: Node) -> Node:
        self.at += 1
        if self.take("degree"):
            return Node(_HALF_TURN, (base,))
        if [t.text for t in self.tokens[self.at : self.at + 3]] == ["{", "degree", "}"]:
            self.at += 3
            return Node(_HALF_TURN, (base,))
        after = [
            t.text
            for t in self.tokens[self.at : self.at + 3]
            if t.style == "text" or t.text in "{}"
        ]
        if after[:1] == ["o"] or after == ["{", "o", "}"]:
            self.at += 1 if after[0] == "o" else 3
            return Node(_HALF_TURN, (base,))
        return Node("pow", (base, self.argument()))

    def argument(self) -> Node:
        """A group in braces, or one token: an exponent, or an argument of a command."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise UnreadableError("exponents are nested too deeply")
        if self.take("{"):
            node = self.sum()
            self.expect("}")
        elif self.is_here("-", "+"):
            node = self.factor()
        else:
            node = self.atom()
            if self.is_here("^"):
                node = self.raised(node)
        self.depth -= 1
        return node

    def digit_argument(self) -> Node:
        r"""An argument of ``\frac``, which is one digit where no brace stands: ``\frac12``."""
        token = self.here
        if token is None or token.kind != "num" or len(token.text) == 1 or not token.text.isdigit():
            return self.argument()
        self.tokens[self.at] = Token("num", token.text[1:])
        return number(int(token.text[0]))

    def atom(self) -> Node:
        token = self.here
        if token is None:
            raise UnreadableError("the expression ends too early")
        self.at += 1
        if token.kind == "num":
            return self.numeral(token)
        if token.kind == "sym":
            return self.name(token)
        if token.kind == "ch":
            return self.bracketed(token)
        if token.kind == "cmd":
            return self.command(token)
        raise UnreadableError(f"{token.text!r} is no part of an expression")

    def name(self, token: Token) -> Node:
        name = token.text
        around = [t.text for t in self.tokens[max(0, self.at - 2) : self.at + 1 : 2]]
        if token.style == "bold" and name in "ijk" and around == ["{", "}"]:
            return Node("sym", (), f"vector {name}")
        subscript = self.subscript()
        primes = 0
        while self.take("'"):
            primes += 1
        full = name + subscript + "'" * primes
        plain = full == name
        if plain and name in ("e", "i"):
            return Node("const", (), name)
        if plain and name == "pi":
            return Node("const", (), "pi")
        if name in _CALLED:
            inverse = [t.text for t in self.tokens[self.at : self.at + 5]] == [
                "^",
                "{",
                "-",
                "1",
                "}",
            ]
            jump = 5 if inverse else 0
            after = self.tokens[self.at + jump : self.at + jump + 1]
            if after and after[0].text == "(":
                self.at += jump + 1
                args = self.several(")")
                return Node("opaque", args, full + ("^-1" if inverse else ""))
        return Node("sym", (), full)

    def stacked(self, above: Node) -> Node:
        r"""A fraction or binomial of what was read and what follows: ``a \over b``, ``n \choose k``."""
        if self.take("choose"):
            return Node("binom", (above, self.sum()))
        return Node("div", (above, self.sum())) if self.take("over") else above

    def several(self, closing: str) -> tuple[Node, ...]:
        args = [self.sum()]
        while self.take(",", ";"):
            args.append(self.sum())
        self.expect(closing)
        return tuple(args)

    def bracketed(self, token: Token) -> Node:
        if token.text in ("(", "[", "{"):
            bars, self.bars = self.bars, 0
            node = self.sum()
            if token.text == "{":
                node = self.stacked(node)
            self.expect(_OPENING[token.text])
            self.bars = bars
            return node
        if token.text in ("|", "norm"):
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.expect(token.text)
            return Node("abs", (node,)) if token.text == "|" else Node("opaque", (node,), "norm")
        raise UnreadableError(f"{token.text!r} is no part of an expression")

    def command(self, token: Token) -> Node:
        name = token.text
        if name in FUNCTIONS:
            return self.function(_ALIASES.get(name, name))
        if name == "frac":
            above = self.digit_argument()
            return Node("div", (above, self.digit_argument()))
        if name == "binom":
            above = self.digit_argument()
            return Node("binom", (above, self.digit_argument()))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect("r" + name[1:])
            return Node("floor" if name == "lfloor" else "ceil", (node,))
        if name == "infty":
            return Node("infinity")
        if name in ("hat", "vec", "overline", "bar", "tilde", "widehat", "dot"):
            return self.marked(name)
        if name in ("sum", "prod"):
            return self.series(name)
        if name == "int":
            return self.integral()
        if name in ("angle", "triangle"):
            return self.named_shape(name)
        if name == "ldots":
            return Node("sym", (), "...")
        raise UnreadableError(f"\\{name} is not known")

    def marked(self, name: str) -> Node:
        node = self.argument()
        if name in ("hat", "vec") and node.op == "const" and node.value == "i":
            return Node("sym", (), "vector i")
        if name in ("hat", "vec") and node.op == "sym" and node.value in ("j", "k"):
            return Node("sym", (), f"vector {node.value}")
        if name in ("overline", "bar") and node.op == "num":
            raise UnreadableError("digits under a bar")
        if name in ("overline", "bar") and node.op != "mul":
            return Node("conj", (node,))
        return Node("opaque", (node,), name)

    def named_shape(self, name: str) -> Node:
        letters = ""
        while self.here is not None and self.here.kind == "sym":
            letters += self.here.text
            self.at += 1
        if not letters:
            raise UnreadableError("a name is missing")
        return Node("sym", (), f"{name} {letters}")

    def function(self, name: str) -> Node:
        if name == "sqrt":
            return self.root()
        base = None
        if name == "log" and self.take("_"):
            base = self.argument()
        name = "ln" if name == "log" else name
        exponent = None
        if self.take("^"):
            exponent = self.argument()
            if exponent == Node("neg", (number(1),)) and name in _INVERSE:
                name, exponent = _INVERSE[name], None
        args = self.function_arguments()
        if name == "lg":
            name, base = "ln", number(10)
        if name in ("max", "min", "gcd", "lcm", "det"):
            node = Node("opaque" if name == "det" else name, args, "det" if name == "det" else None)
        elif len(args) != 1:
            raise UnreadableError(f"{name} takes one argument")
        else:
            node = Node(name, args) if base is None else Node("logb", (args[0], base))
        return node if exponent is None else Node("pow", (node, exponent))

    def function_arguments(self) -> tuple[Node, ...]:
        if self.take("(", "\\{", "[", "{"):
            return self.several(_OPENING[self.tokens[self.at - 1].text])
        node = self.power()
        while self.starts_factor() and not (self.here and self.here.text in (*FUNCTIONS, "(", "[")):
            node = self.beside(node)
        return (node,)

    def root(self) -> Node:
        degree = number(2)
        if self.take("["):
            degree = self.sum()
            self.expect("]")
        if self.take("("):
            node = self.sum()
            self.expect(")")
        else:
            node = self.argument_without_power()
        return Node("root", (node, degree))

    def argument_without_power(self) -> Node:
        if self.take("{"):
            node = self.sum()
            self.expect("}")
            return node
        return self.atom()

    def series(self, name: str) -> Node:
        self.expect("_")
        self.expect("{")
        index = self.here
        if index is None or index.kind != "sym":
            raise UnreadableError("a sum without an index")
        self.at += 1
        self.expect("=")
        first = self.sum()
        self.expect("}")
        self.expect("^")
        last = self.argument()
        body = self.product()
        return Node(name, (first, last, with_index(body, index.text)), index.text)

    def integral(self) -> Node:
        self.expect("_")
        low = self.argument_without_power()
        self.expect("^")
        high = self.argument_without_power()
        end = len(self.tokens) - 1
        while end > self.at and not (
            self.tokens[end].kind == "sym" and self.tokens[end - 1].text == "d"
        ):
            end -= 1
        if end <= self.at + 1:
            raise UnreadableError("an integral without its variable")
        body = parse_expression(self.tokens[self.at : end - 1])
        name = self.tokens[end].text
        self.at = end + 1
        return Node("int", (low, high, body), name)


_STARTING = FUNCTIONS | words(
    "frac binom lfloor lceil infty hat vec overline bar sum prod int angle triangle"
)
