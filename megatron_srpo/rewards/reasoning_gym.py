"""The verifier "reasoning_gym": every family's own scorer (reasoning-gym 0.1.25), behind two guards.

* The final answer is extracted first: most scorers compare the whole text.
* Eight scorers run the answer as Python code (``eval``, or ``sympy.parse_expr``, which is ``eval`` too).
  Answers that could call a function of Python are refused before they reach those scorers.

Two more give (nearly) full marks to a right answer with more text behind it; :data:`TAIL_BLIND` takes that
back.
"""

import json
import re
from functools import lru_cache
from typing import Any

from megatron_srpo.data.generated import create_family
from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.extract import final_answer
from megatron_srpo.rewards.types import NO_ANSWER, WRONG_ANSWER, Score

#: Families that ``eval`` the answer, expecting a list or a board.
EVALUATED_LISTS = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
#: Families that give the answer to ``sympy.parse_expr``, expecting an arithmetic expression or an
#: antiderivative.
EVALUATED_EXPRESSIONS = frozenset(
    {"countdown", "simple_integration", "intermediate_integration", "polynomial_multiplication"}
)
#: Families whose own scorer was read and found to be plain comparison.
PLAIN_SCORERS = frozenset({"chain_sum", "products", "spell_backward", "fraction_simplification"})
#: Families that compare only as much of the answer as the gold answer is long.
TAIL_BLIND = frozenset({"spell_backward", "letter_jumble"})
_TAIL_VALUE = 0.5
#: Some scorers add up fractions, so that a right answer may come out a little below 1.
_RIGHT = 0.99

_SAFE_LIST = re.compile(r"[A-Za-z0-9\s\[\],'\"#*_-]*")
_FUNCTIONS = "sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|pi|Abs|abs"
_SAFE_EXPRESSION = re.compile(rf"(?:[0-9\s+*/^()=-]|(?<=\d)\.|\.(?=\d)|\b(?:[A-Za-z]|{_FUNCTIONS})\b)*")


def verify(prompt: Prompt, response: str) -> Score:
    """Score the final answer with the family's scorer; between 0 and 1."""
    answer = final_answer(response)
    if answer is None:
        return Score(0.0, feedback=NO_ANSWER)
    family = prompt.metadata["family"]
    if not safe_to_score(family, answer.text):
        return Score(0.0, feedback=WRONG_ANSWER, error=f"the answer is not of the form that {family} expects")
    value = _family_score(_scorer(family, _options(prompt)), answer.text, prompt.metadata["entry"])
    if family in TAIL_BLIND and answer.text.lower() != str(prompt.answer).lower():
        value = min(value, _TAIL_VALUE)
    return Score(value, feedback=None if value >= _RIGHT else WRONG_ANSWER)


def _family_score(scorer: Any, answer: str, entry: dict[str, Any]) -> float:
    """Score the answer as it stands and, where it ends in a full stop, without it; the better one counts."""
    value = float(scorer.score_answer(answer, entry))
    if value < _RIGHT and answer.endswith("."):
        value = max(value, float(scorer.score_answer(answer.removesuffix("."), entry)))
    return value


def prepare(prompt: Prompt) -> None:
    """Build the family's scorer, so that the first answer is not charged for it."""
    _scorer(prompt.metadata["family"], _options(prompt))


def safe_to_score(family: str, answer: str) -> bool:
    """Say whether the scorer of ``family`` can be given this answer without running a model's code."""
    if family in EVALUATED_LISTS:
        return _SAFE_LIST.fullmatch(answer) is not None and "__" not in answer
    if family in EVALUATED_EXPRESSIONS:
        return _SAFE_EXPRESSION.fullmatch(answer) is not None
    return True


def is_cheap(prompt: Prompt) -> bool:
    """Say whether the family's scorer only compares text or numbers, and so needs no time limit."""
    from reasoning_gym.dataset import ProceduralDataset

    family = prompt.metadata["family"]
    scorer = type(_scorer(family, _options(prompt))).score_answer
    return family in PLAIN_SCORERS or scorer is ProceduralDataset.score_answer


def _options(prompt: Prompt) -> str:
    """Return the family's options as JSON: some scorers depend on them (decimal places, value ranges)."""
    return json.dumps(prompt.metadata.get("config", {}), sort_keys=True)


@lru_cache(maxsize=256)
def _scorer(family: str, options: str) -> Any:
    return create_family(family, json.loads(options))
