"""Numbers and written-out expressions of a question: what its operations act on.

``mark_leaves`` replaces each by ``#0``, ``#1``, ... and returns them as Python expressions. A small parser of
its own reads them, since they stand in the middle of sentences: it takes as much as makes an expression.
Numbers are constants that are still text.
"""

import ast
import re
from collections.abc import Callable, Mapping

from megatron_srpo.selfplay.skill.lexicon import NUMBER_WORDS

#: Deeper brackets and longer expressions end where the limit is reached.
MOST_DEEP, MOST_OPERATIONS = 30, 60
#: "The two numbers" is none of them.
_COUNTED = ("numbers", "integers", "digits")
FUNCTIONS = ("max", "min", "gcd", "lcm", "sqrt", "abs", "factorial")

_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?)|[^\W\d_]+(?:'[^\W\d_]+)?|\*\*|//|==|\S"
)
#: Signs of multiplication, division and minus; dollars are money or LaTeX, and # marks leaves.
_SIGNS = str.maketrans("\u00d7\u00b7\u22c5\u00f7\u2212\u2013$#", "***/--  ")
_LATEX = (
    (re.compile(r"\\[dt]?frac\{([^{}]{1,80})\}\{([^{}]{1,80})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\sqrt\{([^{}]{1,80})\}"), r"sqrt(\1)"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\[bp]?mod(?![a-zA-Z])"), " mod "),
    (re.compile(r"\\(?:left|right|,|;|!|\(|\)|\[|\])"), " "),
    (re.compile(r"\^\{([^{}]{1,80})\}"), r"^(\1)"),
    (re.compile(r"\\%"), "%"),
)
_ADDITIVE: dict[str, type[ast.operator]] = {"+": ast.Add, "-": ast.Sub}
_MULTIPLICATIVE: dict[str, type[ast.operator]] = {
    "*": ast.Mult,
    "/": ast.Div,
    "//": ast.FloorDiv,
    "%": ast.Mod,
    "mod": ast.Mod,
    "modulo": ast.Mod,
}
_POWERS = ("**", "^")


def mark_leaves(text: str) -> tuple[str, list[ast.expr]]:
    """Return the text in lower case with marks for its numbers and expressions, and those in order."""
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    reader = _Reader(text.translate(_SIGNS).lower())
    pieces: list[str] = []
    leaves: list[ast.expr] = []
    written = 0
    while reader.place < len(reader.tokens):
        start = reader.position()
        leaf = reader.leaf()
        if leaf is None:
            reader.place += 1
            continue
        pieces += [reader.text[written:start], f" #{len(leaves)} "]
        written = reader.end()
        leaves.append(leaf)
    marked = "".join([*pieces, reader.text[written:]])
    return re.sub(r"\s+", " ", marked), [keep_method(leaf) for leaf in leaves]


class _Reader:
    """Recursive descent over a text's tokens; a rule that fails leaves ``place`` where it was."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_TOKEN.finditer(text))
        self.place = 0
        self.depth = self.operations = 0

    def position(self) -> int:
        return self.tokens[self.place].start()

    def end(self) -> int:
        """Return where the token before the current one ends."""
        return self.tokens[self.place - 1].end()

    def leaf(self) -> ast.expr | None:
        """Read an expression that has a number, or an equation between two."""
        start, self.operations = self.place, 0
        if self._is_variable() and self._next(1) not in (*_ADDITIVE, *_MULTIPLICATIVE, *_POWERS, "=", "=="):
            return None
        left = self._sum()
        if left is not None and self._next() in ("=", "=="):
            equals = self.place
            self.place += 1
            right = self._sum()
            if right is None:
                self.place = equals
            else:
                left = ast.Compare(left, [ast.Eq()], [right])
        if left is None or not any(isinstance(node, ast.Constant) for node in ast.walk(left)):
            self.place = start
            return None
        return left

    def _next(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place][0] if place < len(self.tokens) else ""

    def _is_variable(self) -> bool:
        token = self._next()
        return len(token) == 1 and token.isalpha()

    def _sum(self) -> ast.expr | None:
        return self._chain(self._product, _ADDITIVE)

    def _product(self) -> ast.expr | None:
        return self._chain(self._power, _MULTIPLICATIVE, touching=True)

    def _chain(
        self,
        operand: Callable[[], ast.expr | None],
        operators: Mapping[str, type[ast.operator]],
        touching: bool = False,
    ) -> ast.expr | None:
        left = operand()
        while left is not None:
            start = self.place
            kind = operators.get(self._next())
            if kind is not None:
                self.place += 1
            elif touching and self._touches():
                kind = ast.Mult
            self.operations += kind is not None
            right = operand() if kind is not None and self.operations <= MOST_OPERATIONS else None
            if kind is None or right is None:
                self.place = start
                return left
            left = ast.BinOp(left, kind(), right)
        return None

    def _touches(self) -> bool:
        """Say whether a factor follows without a sign: ``3x``, ``2(4 + 1)``."""
        if self.place >= len(self.tokens) or self.end() != self.position():
            return False
        return self._next() == "(" or self._is_variable()

    def _power(self) -> ast.expr | None:
        base = self._atom()
        if base is not None and self._next() == "!" and self.end() == self.position():
            self.place += 1
            base = _call("factorial", [base])
        if base is None or self._next() not in _POWERS:
            return base
        start = self.place
        self.place += 1
        exponent = self._atom()
        if exponent is None:
            self.place = start
            return base
        return ast.BinOp(base, ast.Pow(), exponent)

    def _atom(self) -> ast.expr | None:
        start, token = self.place, self._next()
        if self.place < len(self.tokens) and self.tokens[self.place]["number"]:
            self.place += 1
            return ast.Constant(token.replace(",", ""))
        if token in NUMBER_WORDS and self._next(1) not in _COUNTED:
            self.place += 1
            return ast.Constant(str(NUMBER_WORDS[token]))
        if self._is_variable():
            self.place += 1
            return ast.Name(token)
        found: ast.expr | None = None
        if self.depth < MOST_DEEP:
            self.depth += 1
            found = self._deeper(token)
            self.depth -= 1
        if found is None:
            self.place = start
        return found

    def _deeper(self, token: str) -> ast.expr | None:
        self.place += 1
        if token == "-":
            negated = self._atom()
            return None if negated is None else ast.UnaryOp(ast.USub(), negated)
        if token in FUNCTIONS and self._next() == "(":
            self.place += 1
            values = self._list()
            return _call(token, values) if values else None
        values = self._list() if token == "(" else []
        return values[0] if len(values) == 1 else None

    def _list(self) -> list[ast.expr]:
        """Read expressions between commas up to the closing bracket; none where something else stands."""
        values: list[ast.expr] = []
        while (value := self._sum()) is not None:
            values.append(value)
            closing = self._next()
            self.place += 1
            if closing == ")":
                return values
            if closing != ",":
                break
        return []


def _call(name: str, values: list[ast.expr]) -> ast.expr:
    return ast.Call(ast.Name(name), values, [])


def keep_method(leaf: ast.expr) -> ast.expr:
    """Turn the numbers that say how the answer is found into numbers of the code, so that they stay.

    In expressions of several operations these are 2 as the first factor or as a divisor (double, half) and
    the divisor of a sum that counts its terms (a mean); ``2 * 4`` alone is a product like any. In all, 2 and
    3 as exponents.
    """
    operations = [node for node in ast.walk(leaf) if isinstance(node, ast.BinOp)]
    for node in operations:
        if isinstance(node.op, ast.Pow):
            node.right = _kept(node.right, ("2", "3"))
        elif isinstance(node.op, ast.Mult) and len(operations) > 1:
            node.left = _kept(node.left, ("2",))
        elif isinstance(node.op, ast.Div) and len(operations) > 1:
            node.right = _kept(node.right, ("2", str(_terms(node.left))))
    return leaf


def _kept(operand: ast.expr, values: tuple[str, ...]) -> ast.expr:
    if isinstance(operand, ast.Constant) and operand.value in values:
        return ast.Constant(int(operand.value))
    return operand


def _terms(expression: ast.expr) -> int:
    terms = 1
    while isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Add):
        terms, expression = terms + 1, expression.left
    return terms
