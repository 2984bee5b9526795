from random import Random

import pytest

from megatron_srpo.selfplay.arithmetic import (
    MOST_CHARACTERS,
    NAMES,
    THINGS,
    parse,
    render,
    sample,
    skill_of,
    true_answer,
)
from megatron_srpo.selfplay.arithmetic_skills import FAMILIES

SENTENCES = [(skill, place) for skill, family in FAMILIES.items() for place in range(len(family.surfaces))]

# By hand, one of each skill.
KNOWN = {
    "What is 17 + 25?": ("sum", "42"),
    "Tom has 31 pens and gives away 9. How many pens are left?": ("difference", "22"),
    "Each of 7 children has 12 coins. How many coins do they have in total?": ("product", "84"),
    "Mia packs 54 eggs into bags of 6. How many bags are filled?": ("quotient", "9"),
    "Mia packs 50 eggs into bags of 6. How many eggs are left over?": ("remainder", "2"),
    "Which is larger, 38 or 83?": ("larger", "83"),
    "Find the sum of 4, 5 and 16.": ("sum_of_three", "25"),
    "Ben has 14 cards. Lisa has twice as many and 3 more. How many cards does Lisa have?": (
        "double_then_add",
        "31",
    ),
    "What is the mean of 10 and 24?": ("average", "17"),
    "Half of 40 books are sold and then 6 are lost. How many books remain?": ("half_then_subtract", "14"),
    "Compute 8 * 9 + 11.": ("product_then_add", "83"),
    "What is the largest number that divides both 42 and 56?": ("common_divisor", "14"),
}


@pytest.mark.parametrize(("text", "expected"), KNOWN.items())
def test_answers_by_hand(text: str, expected: tuple[str, str]) -> None:
    assert (skill_of(text), true_answer(text)) == expected


def test_every_skill_has_an_answer_by_hand() -> None:
    assert {skill for skill, _ in KNOWN.values()} == set(FAMILIES)


@pytest.mark.parametrize(("skill", "surface"), SENTENCES)
def test_every_surface_of_every_skill_is_read_back(skill: str, surface: int) -> None:
    random = Random(f"{skill}/{surface}")
    for _ in range(30):
        question = sample(random, skill, surface)
        assert parse(question.text) == question
        assert true_answer(question.text) == str(question.answer)


@pytest.mark.parametrize(("skill", "surface"), SENTENCES)
def test_every_name_and_thing_is_read_back(skill: str, surface: int) -> None:
    numbers = FAMILIES[skill].draw(Random(3))
    for place, name in enumerate(NAMES):
        people = [name, NAMES[place - 1], NAMES[place - 2]]
        text = render(skill, surface, numbers, people, THINGS[place % len(THINGS)])
        assert skill_of(text) == skill


@pytest.mark.parametrize("skill", FAMILIES)
def test_answers_of_drawn_questions_have_one_to_three_digits(skill: str) -> None:
    random = Random(skill)
    questions = [sample(random, skill) for _ in range(300)]
    assert all(0 <= question.answer <= 999 for question in questions)
    assert len({question.answer for question in questions}) >= 5


def test_skill_and_surface_are_drawn_evenly() -> None:
    random = Random(0)
    skills = [sample(random).skill for _ in range(2400)]
    assert all(130 < skills.count(skill) < 270 for skill in FAMILIES)


@pytest.mark.parametrize(
    "text",
    ["What is 3+4?", "  What  is 3 + 4 ?\n", "What is\t3\n+\n4?", "What is 3 +4?"],
)
def test_spaces_around_punctuation_do_not_matter(text: str) -> None:
    assert true_answer(text) == "7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Write a question.",
        "What is 3 + 4",
        "what is 3 + 4?",
        "What is 3 + 4? What is 5 + 6?",
        "What is 1 2 + 4?",
        "What is 03 + 4?",
        "What is 1234 + 4?",
        "What is ٣ + 4?",
        "Whatis 3 + 4?",
        "What is 4 - 9?",
        "What is 7 / 2?",
        "What is 7 / 0?",
        "What is 7 mod 0?",
        "What is (3 + 4) / 2?",
        "What is 7 / 2 - 1?",
        "What is 8 / 2 - 5?",
        "What is gcd(0, 5)?",
        "Tom has 3 pens and buys 4 more. How many eggs does Tom have now?",
        "Tom has 3 pens and buys 4 more. How many pens does Ben have now?",
        "Tom has 3 cars and buys 4 more. How many cars does Tom have now?",
        "What is 3 + 4?" + " " * MOST_CHARACTERS,
        "\x00\ud800",
        "9" * 100_000,
        "(" * 10_000,
    ],
)
def test_other_texts_have_no_answer(text: str) -> None:
    assert true_answer(text) is None
    assert skill_of(text) is None


def test_twice_a_number_is_a_skill_of_its_own() -> None:
    assert skill_of("What is 2 * 5 + 4?") == "double_then_add"
    assert skill_of("What is 3 * 5 + 4?") == "product_then_add"
    text = "There are 2 boxes with 5 pens each and 4 more on a table. How many pens are there?"
    assert (skill_of(text), true_answer(text)) == ("product_then_add", "14")


def test_random_damage_never_raises_and_never_changes_the_meaning() -> None:
    random = Random(1)
    letters = "ab 09+-*/().?\n\\{}é"
    for _ in range(3000):
        question = sample(random)
        place = random.randrange(len(question.text))
        damaged = question.text[:place] + random.choice(letters) + question.text[place + 1 :]
        read = parse(damaged)
        # A damaged number is another question of the same surface (2 * {a} aside); a damaged word is none.
        assert read is None or read.surface == question.surface, damaged
