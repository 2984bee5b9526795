"""Who votes for what in maj@k: answers that mean the same are one answer.

The verifier's own judgement joins all right answers. Wrong ones are joined by what their verifier compares:
the letter, the calls of tools, the text without spacing, or, in mathematics, the value (1/2 and 0.5). Values
are compared by the verifier too, which runs in the reward pool: a hostile expression costs its time limit,
and counts as unlike.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from megatron_srpo.data.types import Prompt
from megatron_srpo.evaluation.keys import vote_key
from megatron_srpo.rewards.extract import final_answer
from megatron_srpo.rewards.math_text import equal_text
from megatron_srpo.rewards.types import Score

#: Characters by which answers that could not be scored are told apart; some have a million.
_UNSCORED = 200

ScoreAll = Callable[[Sequence[Prompt], Sequence[str]], Sequence[Score]]


@dataclass(frozen=True)
class Voter:
    """A scored response.

    Attributes:
        failed: it could not be scored (time limit, too long); it votes for its text, and is not compared.
    """

    prompt: Prompt
    text: str
    correct: bool
    failed: bool = False


def cast_votes(
    voters: Sequence[Voter], score: ScoreAll, threshold: float, blind: bool = False
) -> list[str | None]:
    """Return what every response votes for; equal texts are one answer, None is no vote.

    Args:
        voters: of any prompts, which ``prompt.id`` tells apart.
        score: the verifiers; asked whether two answers agree.
        threshold: least score of answers that agree.
        blind: no right answer is known, so that all answers which may mean the same are compared.
    """
    ballots: dict[str, _Ballot] = defaultdict(_Ballot)
    keys = [_key(voter) for voter in voters]
    for voter, key in zip(voters, keys, strict=True):
        ballots[voter.prompt.id].add(voter, key)
    pairs = [
        (ballot, pair)
        for ballot in ballots.values()
        for pair in (ballot.all_pairs() if blind else ballot.undecided())
    ]
    asked = [replace(ballot.prompt, answer=one) for ballot, (one, _) in pairs]
    answers = score(asked, [f"<answer>{other}</answer>" for _, (_, other) in pairs]) if pairs else []
    for (ballot, pair), agreed in zip(pairs, answers, strict=True):
        if agreed.value >= threshold:
            ballot.join(*pair)
    return [
        None if key is None else ballots[voter.prompt.id].find(key)
        for voter, key in zip(voters, keys, strict=True)
    ]


def _key(voter: Voter) -> str | None:
    if not voter.failed:
        return vote_key(voter.prompt, voter.text)
    answer = final_answer(voter.text)
    return answer.text[:_UNSCORED] if answer else None


class _Ballot:
    """The answers to one prompt, joined into groups of equal meaning."""

    prompt: Prompt

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.votes: Counter[str] = Counter()
        self.right: str | None = None
        self.failed: set[str] = set()

    def add(self, voter: Voter, key: str | None) -> None:
        self.prompt = voter.prompt
        if key is None:
            return
        self.parent.setdefault(key, key)
        self.votes[key] += 1
        if voter.failed:
            self.failed.add(key)
        if voter.correct:
            self.right = self.right or key
            self.join(self.right, key)

    def find(self, key: str) -> str:
        while self.parent[key] != key:
            key = self.parent[key]
        return key

    def join(self, one: str, other: str) -> None:
        self.parent[self.find(other)] = self.find(one)

    def all_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of answers that may be the same value, likely ones first."""
        known = [key for key, _ in self.votes.most_common() if key not in self.failed]
        yield from _alike(known) if self.prompt.task == "math" else ()

    def undecided(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of wrong answers that may be the same value, where that could change who wins."""
        if self.right is None or self.prompt.task != "math":
            return
        winner = self.find(self.right)
        wrong = [key for key in self.votes if self.find(key) != winner]
        right_votes = sum(count for key, count in self.votes.items() if key not in wrong)
        if right_votes > sum(self.votes[key] for key in wrong):
            return
        yield from _alike([key for key in wrong if key not in self.failed])


def _alike(answers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that their texts alone cannot decide."""
    return (pair for pair in combinations(answers, 2) if equal_text(*pair) is None)
