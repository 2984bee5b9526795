"""What a Challenger wrote, read strictly."""

import pytest

from megatron_srpo.config.self_play import SelfPlayPromptConfig
from megatron_srpo.errors import RewardError
from megatron_srpo.selfplay.questions import (
    UNSCORED,
    Written,
    challenger_messages,
    parse_question,
    solver_prompt,
    unscored,
)

CONFIG = SelfPlayPromptConfig(max_question_characters=40)


@pytest.mark.parametrize(
    ("response", "question", "answer"),
    [
        ("<question>What is 1 + 2?</question>\n\n\\boxed{3}", "What is 1 + 2?", "3"),
        ("<think>hm</think><question>\n a \n b \n</question>\\boxed{\\frac{1}{2}}", "a \n b", "\\frac{1}{2}"),
        # The last element counts, and only what follows it may hold the answer.
        ("<question>x</question>\\boxed{1}<question>y</question>\\boxed{2}", "y", "2"),
        ("<question>draft <question>y</question> \\boxed{2}", "y", "2"),
        ("<question>hi<|im_start|>you</question>\\boxed{2}", "hiyou", "2"),
    ],
)
def test_well_formed(response: str, question: str, answer: str) -> None:
    assert parse_question(response, CONFIG) == Written(question, answer)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "What is 1 + 2?",
        "<question>never closed \\boxed{3}",
        "<question>no answer</question>",
        "<question>  </question>\\boxed{3}",
        "\\boxed{3}<question>answer before</question>",
        "<question>empty answer</question>\\boxed{}",
        "</question>the wrong way round<question>\\boxed{3}",
        "<think><question>only thought of</question>\\boxed{3}",
        "<question>" + "long " * 9 + "</question>\\boxed{3}",
    ],
)
def test_malformed(response: str) -> None:
    assert parse_question(response, CONFIG) is None


def test_a_question_of_just_the_longest_length() -> None:
    assert parse_question(f"<question>{'a' * 40}</question>\\boxed{{3}}", CONFIG) is not None
    assert parse_question(f"<question>{'a' * 41}</question>\\boxed{{3}}", CONFIG) is None


def test_chats() -> None:
    assert [message["role"] for message in challenger_messages(SelfPlayPromptConfig())] == ["system", "user"]
    short = SelfPlayPromptConfig(challenger_system=None, solver_system=None, solver_suffix=" Think.")
    assert [message["role"] for message in challenger_messages(short)] == ["user"]
    prompt = solver_prompt("1 + 2?", short, "3")
    assert prompt.messages == ({"role": "user", "content": "1 + 2? Think."},)
    assert (prompt.answer, prompt.task) == ("3", "math")


def test_a_challengers_answer_is_never_scored_alone() -> None:
    with pytest.raises(RewardError, match="self-play"):
        unscored(solver_prompt("1 + 2?", CONFIG), "3")
    module, _, name = UNSCORED.partition(":")
    assert (unscored.__module__, unscored.__name__) == (module, name)
