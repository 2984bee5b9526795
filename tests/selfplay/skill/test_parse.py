"""What comes back from a coder is text from a model: parsed strictly, never run, never a reason to stop."""

import ast
import builtins
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.selfplay.skill import prompt
from megatron_srpo.selfplay.skill.parse import parse_code

GOOD = "def solver(a=3, b=4):\n    return a + b"


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        fenced(GOOD),
        fenced(GOOD, ""),
        fenced(GOOD, "py"),
        f"Here it is:\n\n{fenced(GOOD)}\nIt adds.",
        "def solver( a = 3,b=4 ) :\n  # the sum\n  return (a+b)",
        'def solver(a: int=3, b: "apples"=4) -> int:\n    """Adds."""\n    "a remark"\n    return a + b',
        GOOD + "\n\n\n",
    ],
)
def test_what_says_the_same_gets_the_same_form(answer: str) -> None:
    assert parse_code(answer).code == GOOD


def test_the_example_of_the_prompt_is_code() -> None:
    code = parse_code(prompt.EXAMPLE_CODE).code
    assert code is not None and "groups=14" in code
    assert parse_code(code).code == code


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "not exactly one function"),
        ("I cannot do that.", "SyntaxError"),
        ("```python\n" + GOOD, "does not end"),
        (fenced(GOOD) + "\n" + fenced(GOOD), "more than one block"),
        (fenced(GOOD, "javascript"), "a block of javascript"),
        (GOOD + "\nprint(solver())", "not exactly one function"),
        ("import os\n" + GOOD, "not exactly one function"),
        ("def solver(a=1):\n    import os\n    return os", "an import"),
        ("def solver(a=1):\n    from os import path\n    return path", "an import"),
        ("def solver(a=1):\n    def inner():\n        return 1\n    return inner()", "second function"),
        ("def solver(a=1):\n    class C: pass\n    return C", "a class"),
        ("def solver(a=1):\n    global b\n    return b", "global"),
        ("def solver(a=1):\n    yield a", "generator"),
        ("def solver(a=1):\n    pass", "nothing is returned"),
        ("def solver(a=1):\n    'only words'", "nothing is returned"),
        ("def solve(a=1):\n    return a", "plain function solver"),
        ("@cache\ndef solver(a=1):\n    return a", "plain function solver"),
        ("async def solver(a=1):\n    return a", "not exactly one function"),
        ("solver = lambda a: a", "not exactly one function"),
        ("x" * 100_000, "longer than"),
        ("def solver():\n    return " + "(" * 60 + ")" * 60, "brackets deeper"),
        ("def solver():\n    return " + "-" * 7000 + "1", "larger tree|not Python"),
        ("def solver():\n    return " + "not " * 1500 + "1", "larger tree|not Python"),
        ("def solver():\n    return " + "1 + " * 1500 + "1", "larger tree|not Python"),
        ("def solver():\n    return a" + ".a" * 3000, "larger tree|not Python"),
        ("def solver():\n    return " + "9" * 6000, "not Python"),
        ("".join(" " * n + "if 1:\n" for n in range(99)), "indented"),
        ("def solver():\n    return 'a\0b'", "not Python"),
        ("def solver():\n    return '\ud800'", "not Python"),
        ("\ud800", "not Python"),
    ],
)
def test_everything_else_is_unparsed_with_a_reason(answer: str, reason: str) -> None:
    found = parse_code(answer)
    assert found.code is None
    assert re.search(reason, found.reason)


def test_nothing_is_compiled_or_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that would show in a file if it ran; and ``compile`` is asked for syntax trees only."""
    asked: list[int] = []
    real = builtins.compile

    def watched(source, filename, mode, flags=0, *rest, **options):  # type: ignore[no-untyped-def]
        asked.append(flags)
        return real(source, filename, mode, flags, *rest, **options)

    monkeypatch.setattr(builtins, "compile", watched)
    code = parse_code("def solver(a=open('/nowhere/at/all').read()):\n    return a").code
    assert code is not None and "open" in code
    assert asked and all(flags & ast.PyCF_ONLY_AST for flags in asked)


@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    assert parse_code(text).code is None


PIECES = [
    "def solver(",
    "):",
    "\n    ",
    "return ",
    "a",
    "=1",
    "(",
    "[",
    "{",
    "'",
    '"',
    "\\",
    "f'{",
    "lambda:",
    "```",
    "# x",
]


@given(
    st.lists(st.sampled_from([*PIECES, "\n", ",", "if ", "else:", "yield", "async ", "@", ":="]), max_size=60)
)
def test_what_nearly_is_code_is_survived_and_stands(pieces: list[str]) -> None:
    code = parse_code("".join(pieces)).code
    assert code is None or parse_code(code).code == code
