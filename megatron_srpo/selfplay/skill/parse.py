"""Reads a coder's answer. The code is parsed, never compiled, imported or executed.

What does not say how the question is solved is removed, so that it cannot move the embedding: comments,
docstrings, annotations, spacing, kinds of quotes (all by ``ast.unparse``). Names stay: the prompt asks for
names of roles, and the embedding models were trained on code that has them. Default values stay, as in the
paper.
"""

import ast
import re
import warnings
from collections.abc import Iterator

from megatron_srpo.selfplay.skill.types import Rewrite

NAME = "solver"
#: Limits that are checked before the parser sees the text; a function of 512 tokens stays far below them.
MOST_CHARACTERS = 8_000
MOST_BRACKETS_DEEP = 40
MOST_INDENT = 40
#: Of the tree; chains such as ``- - - 1`` are deep without a bracket.
MOST_NODES = 1_500
MOST_NODES_DEEP = 120

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[ \t]*$", re.M)
_REFUSED = {
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.FunctionDef: "a second function",
    ast.AsyncFunctionDef: "a second function",
    ast.ClassDef: "a class",
    ast.Global: "a global statement",
    ast.Nonlocal: "a nonlocal statement",
    ast.Yield: "a generator",
    ast.YieldFrom: "a generator",
}


def parse_code(text: str) -> Rewrite:
    """Return the one function ``solver`` of an answer in standard form, or why there is none.

    Raises nothing, whatever the text.
    """
    source, reason = _extract(text)
    if source is None:
        return Rewrite(None, reason)
    if reason := _too_much(source):
        return Rewrite(None, reason)
    try:
        # A wrong escape in a string is a warning of the parser, and the coder's affair.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _standard_form(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Rewrite(None, f"not Python: {type(error).__name__}")


def _extract(text: str) -> tuple[str | None, str]:
    """Return what stands between the only pair of fences, or all of a text without fences."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text, ""
    if len(fences) != 2:
        return None, "a block that does not end" if len(fences) == 1 else "more than one block"
    opening, closing = fences
    if opening[1].lower() not in ("", "py", "python", "python3") or closing[1]:
        return None, f"a block of {(opening[1] or closing[1])[:20]}"
    return text[opening.end() : closing.start()], ""


def _too_much(source: str) -> str:
    if len(source) > MOST_CHARACTERS:
        return f"longer than {MOST_CHARACTERS} characters"
    depth = deepest = 0
    for character in source:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MOST_BRACKETS_DEEP:
        return f"brackets deeper than {MOST_BRACKETS_DEEP}"
    indent = max((len(line) - len(line.lstrip()) for line in source.splitlines() if line.strip()), default=0)
    return f"indented by more than {MOST_INDENT}" if indent > MOST_INDENT else ""


def _standard_form(tree: ast.Module) -> Rewrite:
    if reason := _too_large(tree):
        return Rewrite(None, reason)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return Rewrite(None, f"not exactly one function {NAME}")
    function = tree.body[0]
    if function.name != NAME or function.decorator_list:
        return Rewrite(None, f"not a plain function {NAME}")
    for node in ast.walk(function):
        if node is not function and type(node) in _REFUSED:
            return Rewrite(None, _REFUSED[type(node)])
    _strip(function)
    if not any(isinstance(node, ast.Return) and node.value for node in ast.walk(function)):
        return Rewrite(None, "nothing is returned")
    return Rewrite(ast.unparse(ast.fix_missing_locations(function)))


def _too_large(tree: ast.Module) -> str:
    """Measure the tree level by level, without recursion."""
    level: list[ast.AST] = [tree]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MOST_NODES or depth > MOST_NODES_DEEP:
            return "a larger tree than a short function has"
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return ""


def _strip(function: ast.FunctionDef) -> None:
    function.returns = None
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            node.annotation = None
    for body in _bodies(function):
        # A text that stands alone is a docstring or a comment.
        body[:] = [line for line in body if not _is_remark(line)] or [ast.Pass()]


def _bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    """Yield every list of statements that must not be empty."""
    for node in list(ast.walk(function)):
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody") and isinstance(value, list) and value:
                yield value


def _is_remark(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
