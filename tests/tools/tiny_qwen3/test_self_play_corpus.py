"""The examples that teach the small model both roles of self-play."""

from itertools import islice
from random import Random
from typing import Any

import pytest

from megatron_srpo.config.self_play import SelfPlayPromptConfig
from megatron_srpo.rewards.extract import boxed
from megatron_srpo.selfplay.arithmetic import parse, sample
from megatron_srpo.selfplay.arithmetic_skills import FAMILIES
from megatron_srpo.selfplay.questions import challenger_messages, parse_question, solver_prompt
from tools.tiny_qwen3.corpus import IGNORED, Example
from tools.tiny_qwen3.self_play_corpus import (
    CHALLENGER_PROMPT,
    CHALLENGER_SHARE,
    HELD_OUT_PER_SKILL,
    LESSONS,
    PRIOR,
    SLIPS,
    examples,
    held_out,
    prior_question,
    prompt,
    trimming_corpus,
    work,
    written,
)

PLAIN = SelfPlayPromptConfig(challenger_system=None, challenger_user=CHALLENGER_PROMPT, solver_system=None)


@pytest.fixture(scope="module")
def drawn(tokenizer: Any) -> list[Example]:
    return list(islice(examples(tokenizer, 0, held_out()), 1500))


def response(tokenizer: Any, example: Example) -> str:
    labelled = [
        token for token, label in zip(example.tokens, example.labels, strict=True) if label != IGNORED
    ]
    return str(tokenizer.decode(labelled))


@pytest.mark.parametrize("skill", FAMILIES)
def test_work_is_right(skill: str) -> None:
    """Every equation holds, the last number of the work is the answer, and so is the box."""
    random = Random(skill)
    for _ in range(100):
        question = sample(random, skill)
        text = work(question)
        assert boxed(text) == str(question.answer)
        for step in text.split(" \\boxed")[0].split(", "):
            left, equals, right = step.partition("=")
            if equals and not left.startswith(("gcd", "max")):
                assert eval(left) == int(right), step
        assert text.split(" \\boxed")[0].endswith(str(question.answer))


@pytest.mark.parametrize("skill", FAMILIES)
def test_a_slip_is_one_wrong_number_and_the_rest_follows(skill: str) -> None:
    random = Random(skill)
    wrong = 0
    for _ in range(100):
        question = sample(random, skill)
        text = work(question, random).split(" \\boxed")[0]
        steps = [step for step in text.split(", ") if "=" in step and not step.startswith(("gcd", "max"))]
        # After a slip halves are rounded down and differences have no sign.
        false = [step for step in steps if abs(int(eval(step.split("=")[0]))) != int(step.split("=")[1])]
        assert len(false) <= 1, text
        wrong += boxed(work(question, random)) != str(question.answer)
    assert wrong > 50, "a wrong first number may still come to the right answer"


def test_slips_have_their_share(tokenizer: Any) -> None:
    def wrong_share(slips: bool) -> float:
        texts = [
            str(tokenizer.decode(example.tokens))
            for example in islice(examples(tokenizer, 0, held_out(), slips=slips), 1500)
        ]
        solved = [text for text in texts if "<question>" not in text]
        asked = [parse(text.split("user\n")[1].split("<|im_end|>")[0]) for text in solved]
        return sum(boxed(t) != str(q.answer) for t, q in zip(solved, asked, strict=True) if q) / len(solved)

    expected = sum(LESSONS[skill] * SLIPS[skill] for skill in FAMILIES) / sum(LESSONS.values())
    assert wrong_share(slips=False) == 0
    assert wrong_share(slips=True) == pytest.approx(expected, abs=0.06)


def test_what_the_challenger_is_taught_is_well_formed() -> None:
    random = Random(0)
    for _ in range(300):
        question = prior_question(random)
        found = parse_question(written(question), PLAIN)
        assert found is not None
        assert parse(found.question) is not None
        assert found.own_answer == str(question.answer)


def test_examples_end_their_turn_and_label_the_response_alone(tokenizer: Any, drawn: list[Example]) -> None:
    for example in drawn[:200]:
        first = next(place for place, label in enumerate(example.labels) if label != IGNORED)
        assert example.labels[first:] == example.tokens[first:]
        assert example.tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(example.tokens[:first]).endswith("</think>\n\n")


def test_prompts_are_those_of_self_play(tokenizer: Any) -> None:
    """As `challenger_messages` and `solver_prompt` render them with the examples' prompts."""
    from megatron_srpo.data.chat import render_prompt

    asked = render_prompt(tokenizer, challenger_messages(PLAIN), thinking=False)
    assert prompt(tokenizer, CHALLENGER_PROMPT) == asked
    question = sample(Random(1)).text
    solving = render_prompt(tokenizer, solver_prompt(question, PLAIN).messages, thinking=False)
    assert prompt(tokenizer, question) == solving


def test_roles_have_their_shares(tokenizer: Any, drawn: list[Example]) -> None:
    writing = [example for example in drawn if response(tokenizer, example).startswith("<question>")]
    assert len(writing) / len(drawn) == pytest.approx(CHALLENGER_SHARE, abs=0.05)


def test_skills_have_their_skewed_shares() -> None:
    random = Random(2)
    skills = [prior_question(random).skill for _ in range(4000)]
    for skill, part in PRIOR.items():
        assert skills.count(skill) / len(skills) == pytest.approx(part / sum(PRIOR.values()), abs=0.03)
    assert set(PRIOR) == set(LESSONS) == set(FAMILIES)


def test_held_out_questions_are_never_shown(tokenizer: Any) -> None:
    questions = held_out()
    assert len({question.text for question in questions}) == HELD_OUT_PER_SKILL * len(FAMILIES)
    # Few numbers, one surface: without the exclusion some of these would be drawn.
    reserved = {question.text for question in (sample(Random(seed), "product", 0) for seed in range(400))}
    random = Random(0)
    assert any(prior_question(random).text in reserved for _ in range(2000))
    shown = islice(examples(tokenizer, 0, [parse(text) for text in reserved if parse(text)]), 1500)
    texts = " ".join(tokenizer.decode(example.tokens) for example in shown)
    assert not any(f"\n{text}\n" in texts or f"user\n{text}<" in texts for text in reserved)


def test_the_trimming_corpus_holds_every_surface() -> None:
    texts = set(trimming_corpus())
    read = [question for text in texts if (question := parse(text)) is not None]
    assert len({(question.skill, question.surface) for question in read}) == sum(
        len(family.surfaces) for family in FAMILIES.values()
    )
