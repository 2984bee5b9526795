"""Worked solutions: right for every problem, and self-consistent after a slip."""

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.tiny_qwen3.families import FAMILIES, Family, Worksheet, is_correct, linear_coefficients, text_of

BY_NAME = {family.name: family for family in FAMILIES}
CALCULATION = re.compile(r"(-?\d+)([-+*/%])(\d+)=(-?\d+)")


def calculate(left: int, operator: str, right: int) -> int:
    return {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left // right,
        "%": lambda: left % right,
    }[operator]()


def entries(family: Family, count: int = 150) -> list[dict[str, Any]]:
    dataset = family.dataset(4_000_000, count)
    return [dataset[i] for i in range(count)]


def test_there_are_at_least_three_families_with_different_verifier_entries() -> None:
    assert len(BY_NAME) == len(FAMILIES) >= 3
    for family in FAMILIES:
        assert entries(family, 1)[0]["metadata"]["source_dataset"] == family.name


@pytest.mark.parametrize("name", BY_NAME)
def test_worked_solution_satisfies_the_familys_own_verifier(name: str) -> None:
    family = BY_NAME[name]
    dataset = family.dataset(4_000_000, 1)
    for entry in entries(family):
        assert is_correct(dataset, entry, text_of(family.solution(entry))), entry["question"]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_calculation_of_a_worked_solution_holds(name: str) -> None:
    for entry in entries(BY_NAME[name]):
        lines = text_of(BY_NAME[name].solution(entry)).split("\n")
        assert lines[-1].startswith("Answer: ")
        for line in lines[:-1]:
            match = CALCULATION.fullmatch(line)
            assert match is not None, line
            assert calculate(int(match[1]), match[2], int(match[3])) == int(match[4]), line


@pytest.mark.parametrize("name", BY_NAME)
def test_failed_attempt_follows_from_its_wrong_number(name: str) -> None:
    """Calculations hold except where a number slipped, and the answer is the last number written."""
    family, rng, slipped = BY_NAME[name], random.Random(1), 0
    for entry in entries(family):
        spans = family.failed_attempt(entry, rng)
        wrong = [span for span in spans if span.right is not None]
        slipped += len(wrong)
        assert len(wrong) <= 1
        assert all(span.text != span.right for span in wrong)
        text = text_of(spans)
        broken = [
            match[0]
            for match in CALCULATION.finditer(text)
            if calculate(int(match[1]), match[2], int(match[3])) != int(match[4])
        ]
        assert len(broken) <= len(wrong)
        last_result = CALCULATION.findall(text)
        if last_result:
            assert text.endswith(f"Answer: {last_result[-1][3]}")
    assert slipped > 100  # nearly every problem has a number that can go wrong


@pytest.mark.parametrize("name", BY_NAME)
def test_right_number_beside_a_slip_is_what_the_calculation_gives(name: str) -> None:
    """`right` is recomputed from what was written, so that the label is right given the prefix."""
    family, rng, checked = BY_NAME[name], random.Random(2), 0
    for entry in entries(family):
        spans = family.failed_attempt(entry, rng, slips=2)
        for index, span in enumerate(spans):
            line = text_of(spans[:index]).split("\n")[-1]
            if span.right is not None and line.endswith("="):
                match = re.fullmatch(r"(-?\d+)([-+*/%])(\d+)=", line)
                assert match is not None
                assert calculate(int(match[1]), match[2], int(match[3])) == int(span.right)
                checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("equation", "expected"),
    [
        ("5 - 8*e = -51", (-8, 5, -51)),
        ("7*m = 35", (7, 0, 35)),
        ("z + 5 = 13", (1, 5, 13)),
        ("8*t - 9 = 23", (8, -9, 23)),
        ("4 - x = 3", (-1, 4, 3)),
        ("-x - 2 = -9", (-1, -2, -9)),
    ],
)
def test_linear_coefficients(equation: str, expected: tuple[int, int, int]) -> None:
    assert linear_coefficients(equation) == expected


def test_an_equation_that_is_not_linear_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"term '3\*\*x' of the equation"):
        linear_coefficients("3**x = 9")


@given(
    true=st.integers(-150, 900),
    low=st.none() | st.just(0),
    high=st.none() | st.just(1000),
    seed=st.integers(0, 99),
)
def test_a_slip_is_wrong_and_within_bounds(true: int, low: int | None, high: int | None, seed: int) -> None:
    if low is not None:
        true = abs(true)
    sheet = Worksheet(random.Random(seed), frozenset({0}))
    sheet.write("1+1=")
    value = sheet.number(true, low, high)
    span = sheet.spans[-1]
    assert span.text == str(value)
    if span.right is not None:  # where no other number is within the bounds, the right one stands
        assert value != true
        assert span.right == str(true)
    assert low is None or value >= low
    assert high is None or value <= high


def test_a_slip_that_no_bound_allows_stays_right() -> None:
    sheet = Worksheet(random.Random(0), frozenset({0}))
    sheet.write("3%1=")
    assert sheet.number(0, low=0, high=0) == 0
    assert sheet.spans[-1].right is None


def test_only_the_chosen_number_slips() -> None:
    sheet = Worksheet(random.Random(0), frozenset({1}))
    for _ in range(3):
        sheet.write("1+1=")
        sheet.number(2)
    assert [span.right is not None for span in sheet.spans[1::2]] == [False, True, False]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("16-5=11\nAnswer: {}", True),
        ("Answer: {} ", True),
        ("{}", False),  # no answer line
        ("Answer: {}0", False),
        ("Answer: 1{}", False),
        ("Answer: {}\nand more", False),
        ("", False),
    ],
)
def test_is_correct_wants_the_answer_on_the_last_line(response: str, expected: bool) -> None:
    family = BY_NAME["leg_counting"]
    dataset = family.dataset(4_000_000, 1)
    entry = dataset[0]
    assert is_correct(dataset, entry, response.format(entry["answer"])) is expected


def test_part_marks_do_not_count() -> None:
    """The default verifier gives marks to longer texts that contain the answer; those are wrong here."""
    family = BY_NAME["leg_counting"]
    dataset = family.dataset(4_000_000, 1)
    entry = dataset[0]
    padded = f"{entry['answer']}."
    assert 0 < dataset.score_answer(padded, entry) < 1
    assert not is_correct(dataset, entry, f"Answer: {padded}")
