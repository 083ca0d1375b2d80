r"""A parser for the LaTeX in which final answers are written.

math-verify is not used here because it silently drops text that it cannot read (the c of \frac{a}{b}c), ignores letter
case and takes 10 ms. This parser reads the whole text or raises, in time linear in its length, and evaluates nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from rewards.mathematics.expression import FUNCTIONS, Node, TooLarge, Unreadable

MAX_DEPTH = 120
MAX_TERMS = 200  # of all sums and products together: the tree of a sum is as deep as the sum is long
MAX_DIGITS = 400
MAX_EXPONENT = 9_999  # of the power of ten in scientific notation

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi|chi|psi|omega"
    "|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|ell"
)
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_REPEATING = re.compile(
    r"(\d*)\.(\d*)\\(?:dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?|(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d)))"
)
_NUMBER = re.compile(
    r"(\d+(?:\.\d+|\.(?![\w\\{(.]))?|\.\d+)"
    r"(?:[eE]([+-]?\d+)(?![\d.A-Za-z])|\s*(?:\\times|\\cdot|\*|x(?=\s*10\s*\^))\s*10\s*\^\s*(?:\{\s*([+-]?\s*\d+)\s*\}|([+-]?\d+))(?!\s*!))?"
)
_LETTER = re.compile(r"[A-Za-z]'*(?:\s*_\s*(?:\{\s*[\w,+-]*\s*\}|\w))?")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
# Brackets after a name hold an argument where a product would be unusual: f(x + 1), P(A), N(0), but not x(x - 3).
_FUNCTION_NAME = re.compile(r"[fgFG]'*(?:_\w+)?")
_NAME = r"(?:\\[A-Za-z]+|[A-Za-z]'*)(?:_\w|_\{\w+\})?"
_APPLIED = re.compile(rf"({_NAME})\s*\(\s*[+-]?\s*(?:[\d.]+|{_NAME})\s*\)")
_INVERSE = re.compile(r"\^\s*(?:\{\s*-\s*1\s*\}|-1)(?=\s*\()")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{\s*\w+\s*\}|\w)")
_TIMES = re.compile(r"\\cdot(?![A-Za-z])|\\times(?![A-Za-z])|\*")
_DIVIDED_BY = re.compile(r"\\div(?![A-Za-z])|/")
_INFIX = re.compile(r"\\(over|choose)(?![A-Za-z])")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
_PLAIN_FRACTION = re.compile(r"\\frac\s*(?:\{\s*\d+\s*\}|\d)\s*(?:\{\s*\d+\s*\}|\d)")
_ATOM_START = re.compile(
    r"[0-9A-Za-z.({\[]|\\(?!cdot|times|div|right|(?:over|choose)(?![A-Za-z])|rfloor|rceil|text|le|ge|ne|in\b|cup|pm|mp|[^A-Za-z])"
)
_ARGUMENT_START = re.compile(r"[0-9A-Za-z.{]|\\(?:frac|sqrt|pi|" + _GREEK + ")")


@lru_cache(maxsize=4096)  # the completions of a group share their reference
def parse(text: str) -> Node:
    """The expression tree of `text`. Raises Unreadable or TooLarge."""
    parser = _Parser(text)
    node = parser.whole()
    if parser.peek():
        raise Unreadable(f"cannot read {parser.text[parser.pos : parser.pos + 20]!r}")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.pos, self.depth, self.bars, self.num_terms = text, 0, 0, 0, 0
        # A name that is applied once is a function throughout: T in T(n - 1) + T(0).
        applied = _APPLIED.finditer(text) if "(" in text else ()
        self.functions = {re.sub(r"[\\{}]", "", match[1]) for match in applied}

    def peek(self) -> str:
        char = self.text[self.pos : self.pos + 1]
        while char.isspace():
            self.pos += 1
            char = self.text[self.pos : self.pos + 1]
        return char

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.peek()
        match = pattern.match(self.text, self.pos)
        if match:
            self.pos = match.end()
        return match

    def follows(self, pattern: re.Pattern[str]) -> bool:
        self.peek()
        return pattern.match(self.text, self.pos) is not None

    def take_sign(self) -> str:
        self.pos += 1
        return self.text[self.pos - 1]

    def accept(self, literal: str) -> bool:
        self.peek()
        found = self.text.startswith(literal, self.pos)
        if found:
            self.pos += len(literal)
        return found

    def expect(self, literal: str) -> None:
        if not self.accept(literal):
            raise Unreadable(f"expected {literal!r} at {self.text[self.pos : self.pos + 20]!r}")

    def join(self, op: str, *args: Node) -> Node:
        self.num_terms += 1
        if self.num_terms > MAX_TERMS:
            raise TooLarge("too many terms")
        return Node(op, args)

    def descend(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge("nested too deeply")

    def whole(self) -> Node:
        r"""Parses a sum, or two sums joined by TeX's \over or \choose."""
        node = self.sum()
        infix = self.take(_INFIX)
        return Node({"over": "frac", "choose": "binom"}[infix[1]], (node, self.sum())) if infix else node

    def sum(self) -> Node:
        self.descend()
        node = self.product()
        while self.peek() in ("+", "-"):
            negative = self.take_sign() == "-"
            right = self.product()
            node = self.join("add", node, Node("neg", (right,)) if negative else right)
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.take(_TIMES):
                node = self.join("mul", node, self.signed())
            elif self.take(_DIVIDED_BY):
                node = self.join("div", node, self.signed())
            elif self.starts_atom():
                node = self.juxtaposed(node)
            else:
                return node

    def starts_atom(self) -> bool:
        opens_bar = self.peek() == "|" and not self.bars
        return opens_bar or self.follows(_ATOM_START)

    def juxtaposed(self, left: Node) -> Node:
        before = left.args[1] if left.op == "mul" else left
        is_set_apart = before.op == "fact" or (before.op == "pow" and before.args[0].op == "num")  # 5!3!, 2^3 5
        if self.peek().isdecimal() and not is_set_apart:
            raise Unreadable("a number directly after another factor, as in x2 or 3 4")
        grouped = self.peek() == "("
        right = self.power()
        whole = not grouped and left.op == "num" and left.value.denominator == 1
        if whole and right.op == "frac" and all(part.op == "num" for part in right.args):
            numerator, denominator = right.args
            if numerator.value < denominator.value:  # 2\frac{1}{3} is the mixed number two and a third
                return Node("mixed", (left, right))
        return self.join("mul", left, right)

    def signed(self) -> Node:
        negative = self.peek() in ("+", "-") and self.take_sign() == "-"
        node = self.power()
        if node.op == "num" and self.follows(_PLAIN_FRACTION):
            node = self.juxtaposed(node)  # a mixed number binds more tightly than any other factor
        return Node("neg", (node,)) if negative else node

    def power(self) -> Node:
        base = self.atom()
        if base.op == "var":
            base = self.application(base.name) or base
        while True:
            if self.accept("!"):
                base = self.join("fact", base)
            elif self.take(_DEGREE):
                base = self.join("degree", base)
            elif self.accept("^"):
                base = Node("pow", (base, self.exponent()))
                if self.peek() == "^" and not self.follows(_DEGREE):
                    raise Unreadable("two exponents")
            else:
                return base

    def exponent(self) -> Node:
        return Node("neg", (self.atom(),)) if self.accept("-") else self.atom()

    def atom(self) -> Node:
        self.descend()
        char = self.peek()
        if char.isdecimal() or char == ".":
            node = self.number()
        elif char and char in "({[|":
            node = self.group(char)
        elif char == "\\":
            node = self.command()
        else:
            node = self.letter()
        self.depth -= 1
        return node

    def application(self, name: str) -> Node | None:
        """Parses the arguments of f(x), f(x, y) or f^{-1}(x). None if no argument follows the name."""
        always = _FUNCTION_NAME.fullmatch(name) is not None
        inverse = self.take(_INVERSE) if always else None
        if self.peek() != "(" or not (always or name in self.functions):
            return None
        self.pos += 1
        bars, self.bars = self.bars, 0
        arguments = [self.whole()]
        while self.accept(","):
            arguments.append(self.whole())
        self.bars = bars
        self.expect(")")
        return Node("apply", tuple(arguments), name=f"{name}^-1" if inverse else name)

    def group(self, opening: str) -> Node:
        self.pos += 1
        bars, self.bars = self.bars, 1 if opening == "|" else 0
        node = self.whole()
        self.bars = bars
        self.expect({"(": ")", "{": "}", "[": "]", "|": "|"}[opening])
        return Node("abs", (node,)) if opening == "|" else node

    def letter(self) -> Node:
        match = self.take(_LETTER)
        if not match:
            raise Unreadable(f"cannot read {self.text[self.pos : self.pos + 20]!r}")
        name = re.sub(r"[\s{}]", "", match[0])
        return Node("const", name=name) if name in ("e", "i") else Node("var", name=name)

    def number(self) -> Node:
        repeating = self.take(_REPEATING)
        if repeating:
            whole, fixed, *cycles = repeating.groups()
            cycle = "".join(part or "" for part in cycles)
            if len(repeating[0]) > MAX_DIGITS:
                raise TooLarge("a number of too many digits")
            nines = (10 ** len(cycle) - 1) * 10 ** len(fixed)
            return Node("num", value=Fraction(int(whole or 0)) + Fraction(int(fixed + cycle) - int(fixed or 0), nines))
        match = self.take(_NUMBER)
        if not match:
            raise Unreadable("expected a number")
        if len(match[1]) > MAX_DIGITS:
            raise TooLarge("a number of too many digits")
        exponent = re.sub(r"\s", "", match[2] or match[3] or match[4] or "0")
        if len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
            raise TooLarge("an exponent of too many digits")
        value = Fraction(int(match[1])) if match[1].isdecimal() else Fraction(match[1])
        return Node("num", value=value * Fraction(10) ** int(exponent) if exponent != "0" else value)

    def argument(self) -> Node:
        r"""Parses an argument of \frac or \sqrt: a group, or as in TeX a single digit, letter or command."""
        self.descend()
        if self.peek() == "{":
            node = self.group("{")
        elif self.peek().isdecimal():
            self.pos += 1
            node = Node("num", value=Fraction(int(self.text[self.pos - 1])))
        else:
            node = self.command() if self.peek() == "\\" else self.letter()
        self.depth -= 1
        return node

    def command(self) -> Node:
        match = self.take(_COMMAND)
        if not match:
            raise Unreadable(f"cannot read {self.text[self.pos : self.pos + 20]!r}")
        name = match[1]
        if name in ("frac", "binom"):
            return Node(name, (self.argument(), self.argument()))
        if name == "sqrt":
            degree = self.group("[") if self.peek() == "[" else Node("num", value=Fraction(2))
            # TeX would put only the opening bracket of \sqrt(8) under the root; authors mean the whole group.
            return Node("root", (self.group("(") if self.peek() == "(" else self.argument(), degree))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect({"lfloor": r"\rfloor", "lceil": r"\rceil"}[name])
            return Node({"lfloor": "floor", "lceil": "ceil"}[name], (node,))
        if name in FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return Node("const", name="pi")
        if re.fullmatch(_GREEK, name):
            subscript = self.take(_SUBSCRIPT)
            return Node("var", name=name + re.sub(r"[\s{}]", "", subscript[0] if subscript else ""))
        raise Unreadable(f"cannot read \\{name}")

    def function(self, name: str) -> Node:
        base = None
        if name == "log" and self.accept("_"):
            base = self.argument()
        power = self.exponent() if self.accept("^") else None
        if power is not None and power.op == "neg" and power.args[0].value == 1:
            name, power = _INVERSES.get(name) or _refuse(name), None
        opening = self.peek()
        argument = self.group(opening) if opening and opening in "(|[" else self.bare_argument()
        node = Node(name, (argument,) if base is None else (argument, base))
        return Node("pow", (node, power)) if power is not None else node

    def bare_argument(self) -> Node:
        r"""Parses an argument without brackets, as in \sin 2x: juxtaposed factors up to a sign, an operator, a bracket
        or another function."""
        negative = self.accept("-")
        node = self.power()
        while self.follows(_ARGUMENT_START):
            node = self.juxtaposed(node)
        return Node("neg", (node,)) if negative else node


def _refuse(name: str) -> str:
    raise Unreadable(f"cannot read the inverse of {name}")
