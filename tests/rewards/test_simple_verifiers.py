"""The verifiers "exact" and "multiple_choice"."""

import json
from pathlib import Path

import pytest

from megatron_srpo.rewards import exact, multiple_choice
from megatron_srpo.rewards.types import NO_ANSWER, WRONG_ANSWER
from tests.data.helpers import prompt


@pytest.mark.parametrize(
    ("answer", "response", "value", "feedback"),
    [
        ("2", "Answer: 2", 1.0, None),
        ("a  b", "<answer>a b\n</answer>", 1.0, None),
        ("2", "Answer: 20", 0.0, WRONG_ANSWER),
        ("2", "Answer: 2.", 0.0, WRONG_ANSWER),
        ("2", "<think>2", 0.0, NO_ANSWER),
        ("2", "", 0.0, NO_ANSWER),
    ],
)
def test_exact(answer: str, response: str, value: float, feedback: str | None) -> None:
    score = exact.verify(prompt(answer=answer), response)
    assert (score.value, score.feedback, score.error) == (value, feedback, None)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("<reasoning>x</reasoning><answer>\nB\n</answer>", 1.0),
        ("<answer>A</answer><answer>B</answer><|im_end|>", 1.0),
        ("<answer>B</answer><answer>A</answer>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<answer>B: iron</answer>", 0.0),
        ("<answer>A B</answer>", 0.0),
        ("Answer: B", 0.0),
        ("\\boxed{B}", 0.0),
        ("B", 0.0),
        ("<think><answer>B</answer>", 0.0),
        ("<think><answer>A</answer></think><answer>B</answer>", 1.0),
        ("", 0.0),
    ],
)
def test_multiple_choice_wants_the_letter_in_the_last_element(response: str, value: float) -> None:
    assert multiple_choice.verify(prompt(answer="B"), response).value == value


def test_multiple_choice_feedback_tells_missing_from_wrong() -> None:
    gold = prompt(answer="B")
    assert multiple_choice.verify(gold, "B").feedback == multiple_choice.NO_ELEMENT
    assert multiple_choice.verify(gold, "<answer></answer>").feedback == multiple_choice.NO_ELEMENT
    assert multiple_choice.verify(gold, "<answer>A</answer>").feedback == WRONG_ANSWER


def test_feedback_never_holds_the_answer() -> None:
    for remark in (NO_ANSWER, WRONG_ANSWER, multiple_choice.NO_ELEMENT):
        assert not any(letter in remark.split() for letter in "ABCD")


def test_sciknoweval_answers_score_one(shared_data: Path) -> None:
    lines = (shared_data / "sciknoweval/biology/test.jsonl").read_text().splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    scores = [
        multiple_choice.verify(prompt(answer=gold), f"<reasoning>r</reasoning>\n<answer>\n{gold}\n</answer>")
        for gold in golds
    ]
    assert len(scores) == 50
    assert all(score.value == 1.0 for score in scores)
