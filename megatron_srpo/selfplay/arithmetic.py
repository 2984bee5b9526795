"""A small world of arithmetic questions whose truth is known, for self-play with small models.

Twelve skills of one or two steps (arithmetic_skills.py), each asked in five to seven surfaces: bare
expressions and word problems with names and things. A question that a model wrote is read back strictly: its
true answer is known where it is a sentence of this grammar, and unknown (None) otherwise. As ``truth`` of a
SelfPlayConfig, ``megatron_srpo.selfplay.arithmetic:true_answer`` measures pseudo-labels. Left out on purpose:
fractions, negative numbers, and sentences that only a reader would understand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from megatron_srpo.selfplay.arithmetic_skills import FAMILIES, Numbers

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Lisa", "Max", "Mia", "Paul", "Sara", "Tom")
THINGS = ("apples", "balls", "books", "cards", "coins", "eggs", "flowers", "pens", "stamps", "stones")
#: Longer texts are not read.
MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Question:
    """A sentence of the grammar; ``surface`` is its place among the skill's surfaces."""

    text: str
    skill: str
    surface: int
    numbers: Numbers
    answer: int


def render(skill: str, surface: int, numbers: Sequence[int], names: Sequence[str], thing: str) -> str:
    """Return a skill's question; ``names`` are three different ones, though many surfaces have fewer."""
    slots = dict(zip("abc", numbers, strict=False))
    people = dict(zip(("name", "other", "third"), names, strict=True))
    return FAMILIES[skill].surfaces[surface].format(thing=thing, **people, **slots)


def sample(random: Random, skill: str | None = None, surface: int | None = None) -> Question:
    """Draw a question that makes sense; skill and surface evenly where none is given."""
    skill = skill or random.choice(tuple(FAMILIES))
    family = FAMILIES[skill]
    if surface is None:
        surface = random.randrange(len(family.surfaces))
    numbers = family.draw(random)
    answer = family.answer(*numbers)
    if answer is None:
        raise ValueError(f"{skill} draws {numbers}, which have no answer; mend its draw")
    text = render(skill, surface, numbers, random.sample(NAMES, 3), random.choice(THINGS))
    return Question(text, skill, surface, numbers, answer)


def parse(text: str) -> Question | None:
    """Read a question back; None where it is no sentence of the grammar or its numbers make no sense.

    Spaces may be missing or more around punctuation; everything else must be as written above. Numbers have
    at most three digits.
    """
    if len(text) > MOST_CHARACTERS:
        return None
    tight = _tighten(text)
    for skill, surface, pattern in _patterns():
        if match := pattern.fullmatch(tight):
            numbers = tuple(int(value) for slot, value in sorted(match.groupdict().items()) if len(slot) == 1)
            answer = FAMILIES[skill].answer(*numbers)
            if answer is not None:
                return Question(text, skill, surface, numbers, answer)
    return None


def true_answer(text: str) -> str | None:
    """Return the answer to a question of the grammar, None for any other text. Raises nothing."""
    question = parse(text)
    return None if question is None else str(question.answer)


def skill_of(text: str) -> str | None:
    """Return the skill that a question of the grammar asks for, None for any other text. Raises nothing."""
    question = parse(text)
    return None if question is None else question.skill


def _tighten(text: str) -> str:
    """One space between words, none around punctuation."""
    return re.sub(r" ?([^\w ]) ?", r"\1", re.sub(r"\s+", " ", text).strip())


_SLOTS = {
    **{slot: f"(?P<{slot}>0|[1-9][0-9]{{0,2}})" for slot in "abc"},
    **{slot: f"(?P<{slot}>{'|'.join(NAMES)})" for slot in ("name", "other", "third")},
    "thing": f"(?P<thing>{'|'.join(THINGS)})",
}


@cache
def _patterns() -> tuple[tuple[str, int, re.Pattern[str]], ...]:
    return tuple(
        (skill, surface, re.compile(_pattern(sentence)))
        for skill, family in FAMILIES.items()
        for surface, sentence in enumerate(family.surfaces)
    )


def _pattern(sentence: str) -> str:
    """A slot that comes again must hold the same again."""
    pieces, seen = [], set[str]()
    for place, piece in enumerate(re.split(r"\{(\w+)\}", _tighten_around_slots(sentence))):
        if place % 2 == 0:
            pieces.append(re.escape(piece))
        else:
            pieces.append(f"(?P={piece})" if piece in seen else _SLOTS[piece])
            seen.add(piece)
    return "".join(pieces)


def _tighten_around_slots(sentence: str) -> str:
    return re.sub(r" ?([^\w {}]) ?", r"\1", sentence)
