"""The reasoning-gym families that the small Qwen3 learns, and worked solutions for them.

A solution is written on a `Worksheet`. The worksheet can slip: one number comes out wrong, is marked, and
everything after it follows from the wrong number, as in a failed rollout. The warm-up needs such solutions
so that the self-teacher stays sensible after a wrong prefix (see `corpus.py`).
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

SUCCESS_SCORE = 0.99  # several verifiers give part marks to answers that are merely similar
WARM_UP_SEED = 1
# Far from the warm-up: item i of seed s is item i - 1 of seed s + 1. This is megatron_srpo.data's `seed: 9`.
EVALUATION_SEED = 90_000_171
EVALUATION_SIZE = 64  # different questions per family

Entry = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A piece of a worked solution. `right` is set on a number that a slip made wrong: what should stand
    there.
    """

    text: str
    right: str | None = None
    worked_out: bool = (
        False  # the result of a calculation, which follows from what stands before it on the line
    )


@dataclass
class Worksheet:
    """Collects a worked solution; the numbers at the positions `slips` come out wrong."""

    rng: random.Random
    slips: frozenset[int] = frozenset()
    spans: list[Span] = field(default_factory=list)
    numbers: int = 0

    def write(self, text: str) -> None:
        self.spans.append(Span(text))

    def number(self, true: int, low: int | None = None, high: int | None = None) -> int:
        """Write a number that had to be worked out or recalled; returns what was written.

        A wrong number stays within `low`..`high` where given, so that the steps after it can still be done.
        """
        slipped = self.numbers in self.slips
        self.numbers += 1
        value = near_miss(true, self.rng, low, high) if slipped else true
        self.spans.append(Span(str(value), right=None if value == true else str(true)))
        return value


def near_miss(true: int, rng: random.Random, low: int | None, high: int | None) -> int:
    """A wrong number of the kind a small model writes: a neighbour, a wrong carry, a wrong digit, a wrong
    sign.
    """
    digits = str(abs(true))
    place = rng.randrange(len(digits))
    redrawn = int(digits[:place] + str(rng.randrange(10)) + digits[place + 1 :]) * (-1 if true < 0 else 1)
    candidates = [true + rng.choice((-2, -1, 1, 2)), true + rng.choice((-10, 10)), redrawn, redrawn, -true]
    if low is not None and high is not None:
        candidates.append(rng.randint(low, high))
    wrong = [c for c in candidates if c != true and (low is None or c >= low) and (high is None or c <= high)]
    return rng.choice(wrong) if wrong else true


def solve_chain_sum(entry: Entry, sheet: Worksheet) -> None:
    """`15 - 43 - 75` -> `15-43=-28`, `-28-75=-103`, `Answer: -103`."""
    first, *rest = entry["metadata"]["expression"].split()
    total = int(first)
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        sheet.write(f"{total}{operator}{operand}=")
        total = sheet.number(total + int(operand) if operator == "+" else total - int(operand))
        sheet.write("\n")
    sheet.write(f"Answer: {total}")


_TERM = re.compile(r"([+-]?)(\d*)(\*?[a-z])?$")


def linear_coefficients(equation: str) -> tuple[int, int, int]:
    """Coefficient of the variable, constant beside it, right side: `5 - 8*e = -51` gives (-8, 5, -51)."""
    left, right = equation.split(" = ")
    coefficient = constant = 0
    for term in left.replace("- ", "-").replace("+ ", "+").split():
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"term {term!r} of the equation {equation!r} is not linear in one variable")
        sign = -1 if match[1] == "-" else 1
        if match[3]:
            coefficient += sign * int(match[2] or 1)
        else:
            constant += sign * int(match[2])
    return coefficient, constant, int(right)


def solve_simple_equations(entry: Entry, sheet: Worksheet) -> None:
    """`5 - 8*e = -51` -> `5+51=56`, `56/8=7`, `Answer: 7`: the variable's term alone, then the division."""
    coefficient, constant, right = linear_coefficients(entry["metadata"]["equation"])
    if coefficient < 0:  # 5 - 8*e = -51 is solved as 8*e - 51 = 5
        coefficient, constant, right = -coefficient, right, constant
    value = right
    if constant:
        sheet.write(f"{right}-{constant}=" if constant > 0 else f"{right}+{-constant}=")
        value = sheet.number(right - constant, low=0)
        sheet.write("\n")
    if coefficient != 1:
        sheet.write(f"{value}/{coefficient}=")
        value = sheet.number(value // coefficient, low=0)
        sheet.write("\n")
    sheet.write(f"Answer: {value}")


def solve_leg_counting(entry: Entry, sheet: Worksheet) -> None:
    """`5 grasshoppers, 9 dogs` -> `5*6=30`, `9*4=36`, `30+36=66`, `Answer: 66`. Leg counts are recalled."""
    total: int | None = None
    for animal, count in entry["metadata"]["animals"].items():
        sheet.write(f"{count}*")
        legs = sheet.number(ANIMALS[animal], low=0, high=14)
        sheet.write("=")
        product = sheet.number(count * legs, low=0)
        sheet.write("\n")
        if total is not None:
            sheet.write(f"{total}+{product}=")
            product = sheet.number(total + product, low=0)
            sheet.write("\n")
        total = product
    sheet.write(f"Answer: {total}")


@dataclass(frozen=True)
class Family:
    """A reasoning-gym dataset, the settings at which the small model can learn it, and how it is solved."""

    name: str
    config: dict[str, Any]
    solve: Callable[[Entry, Worksheet], None]

    def dataset(self, seed: int, size: int) -> Any:
        return reasoning_gym.create_dataset(self.name, seed=seed, size=size, **self.config)

    def solution(self, entry: Entry) -> list[Span]:
        """The worked solution of an entry."""
        sheet = Worksheet(random.Random(0))
        self.solve(entry, sheet)
        return sheet.spans

    def failed_attempt(self, entry: Entry, rng: random.Random, slips: int = 1) -> list[Span]:
        """A solution with up to `slips` numbers gone wrong and all that follows from them."""
        numbers = Worksheet(rng)
        self.solve(entry, numbers)
        chosen = rng.sample(range(numbers.numbers), min(slips, numbers.numbers))
        sheet = Worksheet(rng, frozenset(chosen))
        self.solve(entry, sheet)
        return sheet.spans


FAMILIES: tuple[Family, ...] = (
    Family("chain_sum", {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}, solve_chain_sum),
    Family(
        "simple_equations",
        {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9},
        solve_simple_equations,
    ),
    Family(
        "leg_counting",
        {"min_animals": 2, "max_animals": 2, "min_instances": 1, "max_instances": 12},
        solve_leg_counting,
    ),
)


def text_of(spans: list[Span]) -> str:
    return "".join(span.text for span in spans)


_ANSWER = re.compile(r"Answer: (\S+)\s*$")


def is_correct(dataset: Any, entry: Entry, response: str) -> bool:
    """Whether the final line `Answer: X` of a response satisfies the family's own verifier."""
    match = _ANSWER.search(response)
    return match is not None and dataset.score_answer(match[1], entry) >= SUCCESS_SCORE
