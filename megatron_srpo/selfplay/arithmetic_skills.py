"""The skills of the world in arithmetic.py: their sentences, their answers, and numbers that make sense."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """A skill.

    Attributes:
        surfaces: sentences with slots: ``{a} {b} {c}`` for numbers, ``{name} {other} {third}``, ``{thing}``.
        answer: of the numbers, or None where the question makes no sense with them.
        draw: numbers that make sense, as examples use them.
    """

    surfaces: tuple[str, ...]
    answer: Callable[..., int | None]
    draw: Callable[[Random], Numbers]


def _pair(low: int, high: int) -> Callable[[Random], Numbers]:
    return lambda random: (random.randint(low, high), random.randint(low, high))


def _draw_difference(random: Random) -> Numbers:
    return random.randint(20, 99), random.randint(2, 20)


def _draw_quotient(random: Random) -> Numbers:
    divisor = random.randint(2, 9)
    return divisor * random.randint(2, 12), divisor


def _draw_three(random: Random) -> Numbers:
    return random.randint(2, 20), random.randint(2, 20), random.randint(2, 20)


def _draw_average(random: Random) -> Numbers:
    first, half_gap = random.randint(2, 40), random.randint(1, 15)
    return first, first + 2 * half_gap


def _draw_half(random: Random) -> Numbers:
    half = random.randint(6, 40)
    return 2 * half, random.randint(2, half - 1)


def _draw_product_then_add(random: Random) -> Numbers:
    # From 3: the expression 2 * b + c is read as double_then_add, which stands first.
    return random.randint(3, 9), random.randint(2, 9), random.randint(2, 20)


def _draw_divisor(random: Random) -> Numbers:
    common = random.randint(2, 9)
    return common * random.randint(2, 9), common * random.randint(2, 9)


def _difference(a: int, b: int) -> int | None:
    return a - b if a >= b else None


def _quotient(a: int, b: int) -> int | None:
    return a // b if b and a % b == 0 else None


def _remainder(a: int, b: int) -> int | None:
    return a % b if b else None


def _average(a: int, b: int) -> int | None:
    return (a + b) // 2 if (a + b) % 2 == 0 else None


def _half_then_subtract(a: int, b: int) -> int | None:
    return a // 2 - b if a % 2 == 0 and a // 2 >= b else None


def _divisor(a: int, b: int) -> int | None:
    return math.gcd(a, b) if a and b else None


FAMILIES: dict[str, Family] = {
    "sum": Family(
        (
            "What is {a} + {b}?",
            "Compute {a} + {b}.",
            "Find the sum of {a} and {b}.",
            "What is {b} added to {a}?",
            "{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
            "{name} has {a} {thing} and {other} has {b}. How many {thing} do they have in total?",
            "There are {a} {thing} in a box and {b} in a bag. How many {thing} are there altogether?",
        ),
        lambda a, b: a + b,
        _pair(2, 49),
    ),
    "difference": Family(
        (
            "What is {a} - {b}?",
            "Compute {a} - {b}.",
            "Find the difference of {a} and {b}.",
            "Subtract {b} from {a}.",
            "{name} has {a} {thing} and gives away {b}. How many {thing} are left?",
            "{name} has {a} {thing} and {other} has {b}. How many more {thing} does {name} have?",
            "There are {a} {thing} in a box. {name} takes {b}. How many {thing} remain?",
        ),
        _difference,
        _draw_difference,
    ),
    "product": Family(
        (
            "What is {a} * {b}?",
            "Compute {a} * {b}.",
            "Find the product of {a} and {b}.",
            "What is {a} times {b}?",
            "There are {a} boxes with {b} {thing} each. How many {thing} are there?",
            "{name} buys {a} bags of {b} {thing}. How many {thing} does {name} have?",
            "Each of {a} children has {b} {thing}. How many {thing} do they have in total?",
        ),
        lambda a, b: a * b,
        _pair(2, 12),
    ),
    "quotient": Family(
        (
            "What is {a} / {b}?",
            "Compute {a} / {b}.",
            "Find the quotient of {a} and {b}.",
            "Divide {a} by {b}.",
            "{name} shares {a} {thing} equally among {b} children. How many {thing} does each child get?",
            "{name} packs {a} {thing} into {b} equal boxes. How many {thing} are in each box?",
            "{name} packs {a} {thing} into bags of {b}. How many bags are filled?",
        ),
        _quotient,
        _draw_quotient,
    ),
    "remainder": Family(
        (
            "What is {a} mod {b}?",
            "Compute {a} mod {b}.",
            "What is the remainder of {a} divided by {b}?",
            "Find the remainder when {a} is divided by {b}.",
            "{name} shares {a} {thing} equally among {b} children. How many {thing} are left over?",
            "{name} packs {a} {thing} into bags of {b}. How many {thing} are left over?",
        ),
        _remainder,
        lambda random: (random.randint(10, 60), random.randint(2, 9)),
    ),
    "larger": Family(
        (
            "What is max({a}, {b})?",
            "Compute max({a}, {b}).",
            "Which is larger, {a} or {b}?",
            "Find the larger of {a} and {b}.",
            "What is the maximum of {a} and {b}?",
            "{name} has {a} {thing} and {other} has {b}. How many {thing} does the one with more have?",
        ),
        lambda a, b: max(a, b),
        _pair(2, 99),
    ),
    "sum_of_three": Family(
        (
            "What is {a} + {b} + {c}?",
            "Compute {a} + {b} + {c}.",
            "Find the sum of {a}, {b} and {c}.",
            "{name} has {a} {thing}, {other} has {b} and {third} has {c}. How many {thing} do they have in "
            "total?",
            "{name} buys {a} {thing}, then {b} and then {c}. How many {thing} does {name} have in total?",
            "There are {a} {thing} in a box, {b} in a bag and {c} on a table. How many {thing} are there "
            "altogether?",
        ),
        lambda a, b, c: a + b + c,
        _draw_three,
    ),
    "double_then_add": Family(
        (
            "What is 2 * {a} + {b}?",
            "Compute 2 * {a} + {b}.",
            "Double {a} and add {b}.",
            "Find twice {a} plus {b}.",
            "What is double {a} plus {b}?",
            "{name} has {a} {thing}, doubles them and buys {b} more. How many {thing} does {name} have now?",
            "{name} has {a} {thing}. {other} has twice as many and {b} more. How many {thing} does {other} "
            "have?",
        ),
        lambda a, b: 2 * a + b,
        _pair(2, 30),
    ),
    "average": Family(
        (
            "What is ({a} + {b}) / 2?",
            "Compute ({a} + {b}) / 2.",
            "Find the average of {a} and {b}.",
            "What is the mean of {a} and {b}?",
            "{name} has {a} {thing} and {other} has {b}. How many {thing} do they have on average?",
            "There are {a} {thing} in a box and {b} in a bag. How many {thing} are in each on average?",
        ),
        _average,
        _draw_average,
    ),
    "half_then_subtract": Family(
        (
            "What is {a} / 2 - {b}?",
            "Compute {a} / 2 - {b}.",
            "Halve {a} and subtract {b}.",
            "Find half of {a} minus {b}.",
            "{name} has {a} {thing}, gives away half and then loses {b}. How many {thing} are left?",
            "Half of {a} {thing} are sold and then {b} are lost. How many {thing} remain?",
        ),
        _half_then_subtract,
        _draw_half,
    ),
    "product_then_add": Family(
        (
            "What is {a} * {b} + {c}?",
            "Compute {a} * {b} + {c}.",
            "Multiply {a} by {b} and add {c}.",
            "Find {a} times {b} plus {c}.",
            "There are {a} boxes with {b} {thing} each and {c} more on a table. How many {thing} are there?",
            "{name} buys {a} bags of {b} {thing} and finds {c} more. How many {thing} does {name} have?",
        ),
        lambda a, b, c: a * b + c,
        _draw_product_then_add,
    ),
    "common_divisor": Family(
        (
            "What is gcd({a}, {b})?",
            "Compute gcd({a}, {b}).",
            "Find the greatest common divisor of {a} and {b}.",
            "What is the largest number that divides both {a} and {b}?",
            "{name} splits {a} red and {b} blue {thing} into equal bags. What is the largest number of bags?",
        ),
        _divisor,
        _draw_divisor,
    ),
}
