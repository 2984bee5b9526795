"""A rule-based stand-in for the coder model: questions of arithmetic to abstract code, by a lexicon.

It makes self-play measurable on machines without a coder model, no more: it knows the words of lexicon.py and
reads sentences from left to right. The rules:

1. Numbers and written-out expressions are leaves (leaves.py); all other words but those of the lexicon are
   dropped, names, things and units among them.
2. A number joins what stands before by the step word before it in its clause ("and buys 3"), else by the one
   after it ("3 more"), else by one that a sentence began with ("Multiply 4 by 5"). Without any it starts a
   term of its own.
3. Words that change one number ("half of 8", "doubles them") act on the number that follows in the clause,
   else on the term before.
4. A word that asks for something of all numbers ("total", "remainder", "larger") combines the terms.
5. What is left without an operation becomes a call that is named by the question's other words in
   alphabetic order, capitalised ones left out as names.

Two questions with the same structure have the same code, whatever their numbers, names and things (but for
rule 5, which cannot tell things from operations). It reads English.
"""

import ast
import re
import unicodedata
from collections.abc import Sequence

from megatron_srpo.selfplay.skill.abstract import function_text
from megatron_srpo.selfplay.skill.leaves import mark_leaves
from megatron_srpo.selfplay.skill.lexicon import CUE, CUES, EMPTY_WORDS, VERSION
from megatron_srpo.selfplay.skill.story import Story, call, combine, whole_operation
from megatron_srpo.selfplay.skill.types import Rewrite
from megatron_srpo.selfplay.skill.words import operation_words

#: Longer texts are read up to here; more numbers make no code but the call of rule 5.
MOST_CHARACTERS = 4_000
MOST_LEAVES = 40
MOST_WORDS = 8

_BREAK = re.compile(r"(?P<mark>#\d+)|(?P<sentence>[.?!;:](?=\s|$))|(?P<clause>,|\b(?:and|then|but|or)\b)")
_WORD = re.compile(r"[^\W\d_]{3,}")


class RuleBasedCoder:
    """A :class:`~megatron_srpo.selfplay.skill.types.Coder` without a model."""

    @property
    def name(self) -> str:
        """The version of the rules."""
        return f"rules-{VERSION}"

    @property
    def description(self) -> str:
        """Says that it stands in."""
        return f"rule-based normaliser (version {VERSION}) in place of a coder model"

    def rewrite(self, questions: Sequence[str]) -> list[Rewrite]:
        """Return code per question; there always is some."""
        return [Rewrite(normalise(question)) for question in questions]

    def embedded(self, code: str) -> str:
        """Return the operations in words; see words.py."""
        return operation_words(code)

    def close(self) -> None:
        """Nothing was started."""


def normalise(question: str) -> str:
    """Return the abstract code of a question. Never raises."""
    question = question[:MOST_CHARACTERS]
    marked, leaves = mark_leaves(question)
    if len(leaves) > MOST_LEAVES:
        return function_text(_unknown(question, []))
    story = _read(marked, leaves)
    expression = combine(story, leaves)
    return function_text(_unknown(question, story.terms) if expression is None else expression)


def _read(marked: str, leaves: Sequence[ast.expr]) -> Story:
    """Tell the story of a marked text, event by event in the order in which they stand there."""
    story = Story(whole_operation(marked))
    events = [(match.start(), match) for pattern in (CUE, _BREAK) for match in pattern.finditer(marked)]
    for _, match in sorted(events, key=lambda event: event[0]):
        if match.re is CUE:
            story.cue(CUES[int(str(match.lastgroup)[1:])])
        elif match["mark"]:
            story.leaf(leaves[int(match["mark"][1:])])
        else:
            story.end_clause(sentence=bool(match["sentence"]))
    story.end_clause(sentence=True)
    return story


def _unknown(question: str, terms: Sequence[ast.expr]) -> ast.expr:
    words = {word for word in _WORD.findall(question) if word.islower()} - EMPTY_WORDS
    # As Python reads names; and a word of another script may be no identifier in all its letters.
    name = unicodedata.normalize("NFKC", "_".join(sorted(words)[:MOST_WORDS]))
    return call(name if name.isidentifier() else "unknown", terms)
