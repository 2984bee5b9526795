"""How the words of a question join its numbers, read from left to right (normalise.py has the rules)."""

import ast
import keyword
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_srpo.selfplay.skill.lexicon import CUE, CUES, Cue

_BINARY: dict[str, type[ast.operator]] = {
    "add": ast.Add,
    "sub": ast.Sub,
    "mul": ast.Mult,
    "div": ast.Div,
    "mod": ast.Mod,
    "power": ast.Pow,
}
#: Words that change a number and are heeded: no question has more, and each makes the expression deeper.
MOST_CHANGES = 20
#: Act on the numbers themselves, whatever joined them.
_ON_NUMBERS = ("gcd", "lcm")
_CALLS = ("max", "min", "median", "digit_sum", "count_letters")
#: Of the step words between two numbers, the first of these counts: "shared into bags of 4" divides.
_STRENGTH = (
    "percent",
    "more_percent",
    "less_percent",
    "power",
    "mod",
    "div",
    "fewer",
    "mul",
    "sub",
    "add",
    "from",
)


@dataclass
class _Clause:
    """Leaves of a clause, with the cues before each and after the last."""

    leaves: list[ast.expr] = field(default_factory=list)
    gaps: list[list[Cue]] = field(default_factory=lambda: [[]])


@dataclass
class Story:
    """What was read so far.

    Attributes:
        whole: the operation that the question asks for of all numbers; empty where none is named.
        terms: finished parts, each an expression.
    """

    whole: str
    terms: list[ast.expr] = field(default_factory=list)
    _clause: _Clause = field(default_factory=_Clause)
    _pending: str = ""
    _pending_alone: list[str] = field(default_factory=list)
    _changes: int = 0

    def cue(self, cue: Cue) -> None:
        """Note a word of the lexicon."""
        self._changes += cue.kind == "alone"
        if cue.kind == "step" or (cue.kind == "alone" and self._changes <= MOST_CHANGES):
            self._clause.gaps[-1].append(cue)

    def leaf(self, leaf: ast.expr) -> None:
        """Note a number or expression."""
        self._clause.leaves.append(leaf)
        self._clause.gaps.append([])

    def end_clause(self, *, sentence: bool) -> None:
        """Join the clause's numbers to the terms."""
        clause, self._clause = self._clause, _Clause()
        if not clause.leaves:
            self._without_numbers(clause.gaps[0])
        for place, leaf in enumerate(clause.leaves):
            last = place + 1 == len(clause.leaves)
            self._join(leaf, clause.gaps[place], clause.gaps[place + 1] if last else [])
        if sentence:
            self._pending = ""

    def _without_numbers(self, cues: Sequence[Cue]) -> None:
        for cue in cues:
            if cue.kind == "alone" and self.terms:
                self.terms[-1] = alone(cue.operation, self.terms[-1])
            elif cue.kind == "alone":
                self._pending_alone.append(cue.operation)

    def _join(self, leaf: ast.expr, before: Sequence[Cue], after: Sequence[Cue]) -> None:
        for operation in [*_operations(before, "alone"), *self._pending_alone]:
            leaf = alone(operation, leaf)
        self._pending_alone = []
        step = _strongest(before)
        own = step or _strongest(after)
        if not self.terms:
            self.terms.append(leaf)
            # "Multiply 4 by 5": the word before the first number says how the second joins it.
            self._pending = own
        elif own == "from" or own == "fewer" or (self._pending == "sub" and _has(before, "from")):
            self.terms[-1] = binary("sub", leaf, self.terms[-1])
            self._pending = ""
        elif own or self._pending:
            self.terms[-1] = binary(own or self._pending, self.terms[-1], leaf)
        else:
            self.terms.append(leaf)
        for operation in _operations(after, "alone"):
            self.terms[-1] = alone(operation, self.terms[-1])


def _operations(cues: Sequence[Cue], kind: str) -> list[str]:
    return [cue.operation for cue in cues if cue.kind == kind]


def _has(cues: Sequence[Cue], operation: str) -> bool:
    return any(cue.operation == operation for cue in cues)


def _strongest(cues: Sequence[Cue]) -> str:
    found = _operations(cues, "step")
    return min(found, key=_STRENGTH.index) if found else ""


def whole_operation(marked: str) -> str:
    """Return what a question asks of all its numbers: of several words the one that is first in CUES."""
    places = [int(str(match.lastgroup)[1:]) for match in CUE.finditer(marked)]
    return next((CUES[place].operation for place in sorted(places) if CUES[place].kind == "whole"), "")


def combine(story: Story, leaves: Sequence[ast.expr]) -> ast.expr | None:
    """Return the question's expression; None where no operation was found."""
    terms, whole = story.terms, story.whole
    if not terms:
        return None
    if whole == "mod":
        return _remainder(terms, leaves)
    if whole in _ON_NUMBERS and len(leaves) > 1:
        return call(whole, leaves)
    if whole in _CALLS and (len(terms) > 1 or whole not in ("max", "min")):
        return call(whole, terms)
    if len(terms) > 1 and whole == "mean":
        return binary("div", _fold("add", terms), ast.Constant(len(terms)))
    if len(terms) > 1:
        return _fold(whole, terms) if whole in _BINARY else None
    # A lone number that nothing happened to.
    return None if isinstance(terms[0], ast.Constant) else terms[0]


def _remainder(terms: Sequence[ast.expr], leaves: Sequence[ast.expr]) -> ast.expr | None:
    last = terms[-1]
    if isinstance(last, ast.BinOp) and isinstance(last.op, ast.Div | ast.Mod):
        return ast.BinOp(last.left, ast.Mod(), last.right)
    return binary("mod", leaves[0], leaves[-1]) if len(leaves) > 1 else None


def _fold(operation: str, terms: Sequence[ast.expr]) -> ast.expr:
    folded = terms[0]
    for term in terms[1:]:
        folded = binary(operation, folded, term)
    return folded


def binary(operation: str, left: ast.expr, right: ast.expr) -> ast.expr:
    """Return two expressions joined by an operation of the lexicon."""
    kind = _BINARY.get(operation)
    return call(operation, [left, right]) if kind is None else ast.BinOp(left, kind(), right)


def alone(operation: str, term: ast.expr) -> ast.expr:
    """Return one expression changed."""
    two = ast.Constant(2)
    if operation == "double":
        return ast.BinOp(two, ast.Mult(), term)
    if operation == "half":
        return ast.BinOp(term, ast.Div(), two)
    if operation == "triple":
        return ast.BinOp(ast.Constant(3), ast.Mult(), term)
    if operation in ("square", "cube"):
        return ast.BinOp(term, ast.Pow(), two if operation == "square" else ast.Constant(3))
    return call("sqrt" if operation == "square_root" else operation, [term])


def call(name: str, values: Sequence[ast.expr]) -> ast.expr:
    """Return a call of a function that is only named; a keyword ("from") gets a mark that makes it a name."""
    return ast.Call(ast.Name(f"{name}_" if keyword.iskeyword(name) else name), list(values), [])
