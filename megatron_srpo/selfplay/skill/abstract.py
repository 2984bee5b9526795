"""Expressions as the text of one function ``solver``."""

import ast

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def function_text(expression: ast.expr) -> str:
    """Return ``def solver(a, b): ...`` for an expression.

    Constants that are still text are the question's numbers and become parameters, in the order in which they
    stand in the code; variables of an equation become ``x0``, ``x1``, ... in the same way. Parameters have no
    default values, so questions that differ in nothing but numbers have equal code.
    """
    numbering = _Numbering()
    body = numbering.visit(expression)
    return f"def solver({', '.join(numbering.parameters)}):\n    return {ast.unparse(body)}"


class _Numbering(ast.NodeTransformer):
    """Makes a new tree; the fields of a node are visited in the order in which the code will be read."""

    def __init__(self) -> None:
        self.parameters: list[str] = []
        self._variables: dict[str, str] = {}

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if not isinstance(node.value, str):
            return node
        self.parameters.append(parameter(len(self.parameters)))
        return ast.Name(self.parameters[-1])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self._variables.setdefault(node.id, f"x{len(self._variables)}"))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return ast.Call(node.func, [self.visit(value) for value in node.args], [])


def parameter(place: int) -> str:
    """Return the name of a parameter: a, b, ..., z, a1, b1, ..."""
    return LETTERS[place % len(LETTERS)] + (str(place // len(LETTERS)) if place >= len(LETTERS) else "")
