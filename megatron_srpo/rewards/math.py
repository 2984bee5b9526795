"""The verifier "math": numbers and strings are compared directly, everything else by math-verify 0.9.

math-verify's own time limit (``signal.alarm``) is switched off because the pool's covers it; outside the
pool a hostile expression such as ``9^{9^{9^9}}`` therefore runs for ever.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError
from megatron_srpo.rewards.extract import Answer, boxed, final_answer
from megatron_srpo.rewards.types import NO_ANSWER, WRONG_ANSWER, Score

#: Longest expression given to the parser, whose cost grows much faster than the length.
MAX_EXPRESSION = 2000

_NOISE = re.compile(r"\\[!,;: ]|\\left|\\right|\\\$|\\\(|\\\)|\\\[|\\\]|\$|\s")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_INTEGER = re.compile(r"([-+]?)0*(\d+)(\.0*)?")


def verify(prompt: Prompt, response: str) -> Score:
    """Score 1 when the final answer equals the gold answer mathematically.

    Raises:
        DataError: the prompt has no gold answer.
    """
    if prompt.answer is None:
        raise DataError(f"prompt {prompt.id!r} has no gold answer to compare with")
    answer = final_answer(response)
    if answer is None:
        return Score(0.0, feedback=NO_ANSWER)
    right = equal_text(prompt.answer, answer.text)
    if right is None:
        right = _equal_expression(prompt.answer, answer)
    return Score(1.0) if right else Score(0.0, feedback=WRONG_ANSWER)


def prepare(prompt: Prompt) -> None:
    """Load the parser's grammar, so that the first answer is not charged for it."""
    _ = prompt
    _warm_up()


def equal_text(gold: str, answer: str) -> bool | None:
    """Compare as strings and as integers of any size; None when that cannot decide."""
    gold, answer = normalise(gold), normalise(answer)
    if gold == answer:
        return True
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return False
    return None


def normalise(text: str) -> str:
    """Remove spacing, dollar signs, a final full stop and thousands separators; write integers in one way."""
    text = _NOISE.sub("", text).removesuffix(".")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    integer = _INTEGER.fullmatch(text)
    if integer is None:
        return text
    sign, digits, _ = integer.groups()
    return ("-" if sign == "-" and digits != "0" else "") + digits


def _equal_expression(gold: str, answer: Answer) -> bool:
    import math_verify

    if len(answer.text) > MAX_EXPRESSION and answer.form != "plain":
        return False
    for candidate in _candidates(answer):
        parsed = _parse(candidate)
        if parsed and math_verify.verify(_parse_gold(gold), parsed, timeout_seconds=None):
            return True
    return False


def _candidates(answer: Answer) -> list[str]:
    """Return the texts to parse, in order: the bare expression in a box, then the text as it stands."""
    if answer.form == "plain":
        return [answer.text[-MAX_EXPRESSION:]]
    inner = boxed(answer.text) or answer.text
    bare = inner.strip().removesuffix(".").strip("$").strip()
    for left, right in (("\\(", "\\)"), ("\\[", "\\]")):
        bare = bare.removeprefix(left).removesuffix(right).strip()
    # Words around the expression would make nonsense of the box; math-verify then finds the expression
    # itself.
    return ["\\boxed{" + bare + "}"] + ([answer.text] if "$" in bare or " " in bare else [])


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> Any:
    return _parse("$" + gold.strip().strip("$") + "$")


def _parse(text: str) -> Any:
    import math_verify

    _warm_up()
    return math_verify.parse(text, parsing_timeout=None)


@lru_cache(maxsize=1)
def _warm_up() -> None:
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        # They warn that time limits are off; the pool's own limit is in force.
        logging.getLogger(name).setLevel(logging.ERROR)
    half = math_verify.parse("$\\frac{1}{2}$", parsing_timeout=None)
    math_verify.verify(half, half, timeout_seconds=None)
