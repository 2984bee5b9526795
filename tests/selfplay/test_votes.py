"""The Solver's votes, with answers given by hand in place of a model's."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from megatron_srpo.config.loader import build
from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rollout.types import Completion, Request, SamplingParams, VersionSpan
from megatron_srpo.selfplay.pool import judge_pool
from megatron_srpo.selfplay.votes import Verdict, VoteBook, right_labels
from tests.data.tokenizer import byte_tokenizer

RUN = {
    "model": {"path": "m"},
    "algorithm": {"name": "grpo"},
    "data": {"max_prompt_tokens": 200},
    "rollout": {"max_response_tokens": 64},
}


def config(samples: int = 10, block: int = 40, **keys: object) -> SelfPlayConfig:
    tree = {
        "challenger": RUN,
        "solver": RUN,
        "votes": {"samples": samples},
        "pool": {"questions": 4, "block": block},
        "prompt": {"solver_system": None},
        **keys,
    }
    return build(SelfPlayConfig, tree)


class Answers:
    """A Solver that gives the answers of a list, over and over, whatever it is asked."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers, self.tokenizer = answers, byte_tokenizer()
        self.calls: list[list[Request]] = []

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Completion]:
        self.calls.append(list(requests))
        completions = []
        for place, request in enumerate(requests):
            tokens = tuple(self.tokenizer.encode(self.answers[place % len(self.answers)]))
            spans = (VersionSpan(0, len(tokens)),)
            completions.append(Completion(request.id, tokens, (-1.0,) * len(tokens), "stop", spans))
        return completions


@pytest.fixture(scope="module")
def rewards() -> Iterator[RewardPool]:
    with RewardPool(RewardConfig(workers=1)) as pool:
        yield pool


def book(path: Path, answers: Answers, rewards: RewardPool, chosen: SelfPlayConfig) -> VoteBook:
    return VoteBook(chosen, answers, rewards, path / "votes.jsonl", 1, lambda: None)  # type: ignore[arg-type]


def boxed(*answers: str) -> list[str]:
    return [f"So it is \\boxed{{{answer}}}." for answer in answers]


def test_answers_that_mean_the_same_are_one(tmp_path: Path, rewards: RewardPool) -> None:
    given = boxed("0.5", "1/2", "\\frac{1}{2}", "50\\%", "2", "2.0", "3", "7", "7", "0.50")
    (verdict,) = book(tmp_path, Answers(given), rewards, config()).verdicts(["What is half of one?"])
    # By hand: half (5, the per cent too), two (2), seven (2), three (1).
    assert [count for _, count in verdict.votes] == [5, 2, 2, 1]
    assert verdict.share == 0.5
    assert verdict.label in ("0.5", "1/2", "\\frac{1}{2}", "0.50", "50\\%")
    assert right_labels(["1/2"], [verdict.label or ""], rewards) == [True]


def test_missing_answers_count_in_the_share(tmp_path: Path, rewards: RewardPool) -> None:
    given = [*boxed("4", "4", "4", "5"), *["<think>never ends"] * 6]
    (verdict,) = book(tmp_path, Answers(given), rewards, config()).verdicts(["2 + 2?"])
    assert verdict == Verdict((("4", 3), ("5", 1)), 10)
    assert verdict.share == 0.3
    (none,) = book(tmp_path / "none", Answers(["<think>"]), rewards, config()).verdicts(["2 + 2?"])
    assert (none.share, none.label) == (0.0, None)


def test_of_equally_frequent_answers_the_first_is_the_label(tmp_path: Path, rewards: RewardPool) -> None:
    (verdict,) = book(tmp_path, Answers(boxed("8", "9")), rewards, config()).verdicts(["?"])
    assert verdict == Verdict((("8", 5), ("9", 5)), 10)


def test_a_question_is_judged_once(tmp_path: Path, rewards: RewardPool) -> None:
    solver = Answers(boxed("1", "1", "2"))
    votes = book(tmp_path, solver, rewards, config(samples=3, block=6))
    first = votes.verdicts(["a?", "b?", "a?", "c?"])
    assert [len(call) for call in solver.calls] == [6, 3]  # two questions of three answers in a block
    assert first[0] == first[2] and votes.computed == 3
    again = Answers(boxed("99"))
    assert book(tmp_path, again, rewards, config(samples=3)).verdicts(["c?", "a?", "b?"]) == [
        first[3],
        first[0],
        first[1],
    ]
    assert again.calls == []


def test_seeds_depend_on_the_question_alone(tmp_path: Path, rewards: RewardPool) -> None:
    one, other = Answers(boxed("1")), Answers(boxed("1"))
    book(tmp_path / "one", one, rewards, config()).verdicts(["a?", "b?"])
    book(tmp_path / "other", other, rewards, config()).verdicts(["b?", "c?", "a?"])
    seeds = {request.id: request.seed for request in one.calls[0]}
    assert len(set(seeds.values())) == 20
    again = {request.id: request.seed for request in other.calls[0]}
    assert seeds.items() <= again.items()


def test_a_question_too_long_to_be_asked_has_no_votes(tmp_path: Path, rewards: RewardPool) -> None:
    solver = Answers(boxed("1"))
    long, short = book(tmp_path, solver, rewards, config()).verdicts(["word " * 60, "a?"])
    assert (long.share, long.label) == (0.0, None)
    assert short.share == 1.0
    assert len(solver.calls[0]) == 10


class Interrupted(Exception):
    pass


def test_what_was_judged_before_an_interruption_stays(tmp_path: Path, rewards: RewardPool) -> None:
    chosen, left = config(samples=2, block=2), [2]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted

    solver, path = Answers(boxed("1", "2")), tmp_path / "votes.jsonl"
    votes = VoteBook(chosen, solver, rewards, path, 1, check)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        votes.verdicts(["a?", "b?", "c?", "d?"])
    again = Answers(boxed("1", "2"))
    assert len(book(tmp_path, again, rewards, chosen).verdicts(["a?", "b?", "c?", "d?"])) == 4
    assert [len(call) for call in again.calls] == [2, 2]


def test_a_hostile_answer_costs_its_time_and_no_more(tmp_path: Path) -> None:
    given = boxed("9^{9^{9^{9^9}}}", "4", "4.0", "(" * 500)
    with RewardPool(RewardConfig(workers=1, time_limit_s=1.0)) as rewards:
        (verdict,) = book(tmp_path, Answers(given), rewards, config(samples=4)).verdicts(["?"])
    assert verdict.votes[0] == ("4", 2)


def written(question: str) -> str:
    return f"<question>{question}</question> \\boxed{{4}}"


def test_the_pool_s_rows(tmp_path: Path, rewards: RewardPool) -> None:
    chosen = config(samples=4)
    solver = Answers([*boxed("4", "4", "5", "6"), *boxed("1", "1", "1", "1")])
    texts = [written("2 + 2?"), "no question", written("one?"), written("2 + 2?")]
    votes = book(tmp_path, solver, rewards, chosen)
    truths = {"2 + 2?": "4.0"}
    rows = judge_pool(chosen, texts, votes, rewards, truths.get, iteration=3)
    assert [row["id"] for row in rows] == ["3/0", "3/1", "3/2", "3/3"]
    assert [row["valid"] for row in rows] == [True, False, False, True]
    assert [row["label_correct"] for row in rows] == [True, None, None, True]
    assert rows[0] == {
        "id": "3/0",
        "question": "2 + 2?",
        "own_answer": "4",
        "share": 0.5,
        "label": "4",
        "votes": [["4", 2], ["5", 1], ["6", 1]],
        "valid": True,
        "truth": "4.0",
        "label_correct": True,
    }
    assert rows[1]["question"] is None and rows[1]["share"] is None
    assert rows[2]["share"] == 1.0
    blind = judge_pool(chosen, texts, votes, rewards, None, iteration=3)
    assert [row["truth"] for row in blind] == [None] * 4
