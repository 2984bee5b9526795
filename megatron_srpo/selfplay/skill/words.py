"""The operations of an abstract function in words, for embedding models that were not trained on code.

To such a model all short functions are alike: what they share (``def solver``, ``return``, parameters)
outweighs the one sign in which they differ (docs/measurements.md has the numbers). So the rule-based coder's
functions are embedded as the words of their operations, outermost first.
"""

import ast

_WORDS: dict[type[ast.AST], str] = {
    ast.Add: "total sum",
    ast.Sub: "difference left",
    ast.Mult: "product of groups",
    ast.Div: "quotient shared equally",
    ast.FloorDiv: "whole quotient shared equally",
    ast.Mod: "remainder after division",
    ast.Pow: "power",
    ast.USub: "negative",
    ast.Compare: "solve equation",
}
_CALLS = {
    "max": "larger maximum",
    "min": "smaller minimum",
    "gcd": "greatest common divisor",
    "lcm": "least common multiple",
    "sqrt": "square root",
    "fewer": "difference left",
    "percent": "percent of",
}
_POWERS = {2: "square", 3: "cube"}


def operation_words(code: str) -> str:
    """Return the words of a function's operations, such as "difference left half" for ``a / 2 - b``.

    Raises:
        SyntaxError: it is not code that function_text wrote.
    """
    return " ".join(_words(ast.parse(code).body[0]))


def _words(node: ast.AST) -> list[str]:
    word, parts = _operation(node)
    return [*([word] if word else []), *(found for part in parts for found in _words(part))]


def _operation(node: ast.AST) -> tuple[str, list[ast.AST]]:
    """Return what a node does, and what it does it to."""
    if isinstance(node, ast.BinOp):
        return _binary(node)
    if isinstance(node, ast.UnaryOp):
        return _WORDS[type(node.op)], [node.operand]
    if isinstance(node, ast.Compare):
        return _WORDS[ast.Compare], [node.left, *node.comparators]
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return _CALLS.get(name, name.replace("_", " ").strip()), list(node.args)
    return "", list(ast.iter_child_nodes(node))


def _binary(node: ast.BinOp) -> tuple[str, list[ast.AST]]:
    left, right = _number(node.left), _number(node.right)
    addends = _addends(node.left)
    if isinstance(node.op, ast.Div) and right == len(addends) > 1:
        return "average mean", addends
    if isinstance(node.op, ast.Div) and right == 2:
        return "half", [node.left]
    if isinstance(node.op, ast.Mult) and left in (2, 3):
        return "double twice" if left == 2 else "triple thrice", [node.right]
    if isinstance(node.op, ast.Pow) and right in _POWERS:
        return _POWERS[right], [node.left]
    return _WORDS[type(node.op)], [node.left, node.right]


def _number(node: ast.AST) -> int | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int) else None


def _addends(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_addends(node.left), node.right]
    return [node]
