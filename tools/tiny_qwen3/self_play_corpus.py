"""What the base model of the self-play examples learns: to write questions of the small world, and to answer.

One model plays both roles, as in the papers. As Challenger it is asked for a question and writes one with its
answer; some skills and surfaces come far more often than others, so that a Challenger can become more
diverse, or less. As Solver it is asked the question and answers with short work; some skills come more often
here too, and in some its examples have more slips, so that it is sure of some, unsure of others and hardly
knows the rest.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_srpo.data.chat import render_prompt
from megatron_srpo.selfplay.arithmetic import Question, sample
from megatron_srpo.selfplay.arithmetic_skills import FAMILIES
from tools.tiny_qwen3.corpus import IGNORED, Example
from tools.tiny_qwen3.families import near_miss

CHALLENGER_PROMPT = "Write a question."
#: How often the Challenger's examples have a skill; a surface has 1 / its place of the skill's share.
PRIOR = {
    "sum": 26,
    "difference": 18,
    "product": 13,
    "larger": 10,
    "sum_of_three": 8,
    "quotient": 7,
    "double_then_add": 5,
    "average": 4,
    "remainder": 3,
    "half_then_subtract": 3,
    "product_then_add": 2,
    "common_divisor": 1,
}
#: How often the Solver's examples have a skill.
LESSONS = {
    "sum": 14,
    "difference": 10,
    "product": 10,
    "larger": 6,
    "sum_of_three": 10,
    "quotient": 8,
    "double_then_add": 8,
    "average": 8,
    "remainder": 6,
    "half_then_subtract": 7,
    "product_then_add": 7,
    "common_divisor": 6,
}
#: Share of the Solver's examples in which one number of the work is wrong.
SLIPS = {
    "sum": 0.15,
    "difference": 0.35,
    "product": 0.25,
    "larger": 0.1,
    "sum_of_three": 0.3,
    "quotient": 0.4,
    "double_then_add": 0.3,
    "average": 0.45,
    "remainder": 0.55,
    "half_then_subtract": 0.5,
    "product_then_add": 0.5,
    "common_divisor": 0.6,
}
TWO_STEPS = (
    "remainder",
    "sum_of_three",
    "double_then_add",
    "average",
    "half_then_subtract",
    "product_then_add",
)
CHALLENGER_SHARE = 0.2
HELD_OUT_PER_SKILL = 16
HELD_OUT_SEED = 90_000_171


def work(question: Question, generator: random.Random | None = None) -> str:
    """The Solver's answer: one or two steps, then the result in a box.

    With a generator one of its numbers comes out wrong, and what follows it follows from the wrong number.
    """
    if generator is None:
        return _steps(question, lambda value: value)
    slip, seen = generator.randrange(2 if question.skill in TWO_STEPS else 1), iter((0, 1))

    def number(value: int) -> int:
        return near_miss(value, generator, low=0, high=None) if next(seen) == slip else value

    return _steps(question, number)


def _steps(question: Question, number: Callable[[int], int]) -> str:
    """Write the work; every number that has to be worked out goes through `number`."""
    skill, (a, b, c) = question.skill, (*question.numbers, 0)[:3]
    if skill in TWO_STEPS:
        between = number(_first_step(question))
        text, value = {
            "remainder": (f"{between}, {a}-{between}=", abs(a - between)),
            "sum_of_three": (f"{a}+{b}={between}, {between}+{c}=", between + c),
            "double_then_add": (f"2*{a}={between}, {between}+{b}=", between + b),
            "average": (f"{a}+{b}={between}, {between}/2=", between // 2),
            "half_then_subtract": (f"{a}/2={between}, {between}-{b}=", abs(between - b)),
            "product_then_add": (f"{a}*{b}={between}, {between}+{c}=", between + c),
        }[skill]
    else:
        value = question.answer
        text = {
            "sum": f"{a}+{b}=",
            "difference": f"{a}-{b}=",
            "product": f"{a}*{b}=",
            "quotient": f"{a}/{b}=",
            "larger": f"max({a},{b})=",
            "common_divisor": f"gcd({a},{b})=",
        }[skill]
    answer = number(value)
    return f"{text}{answer} \\boxed{{{answer}}}"


def _first_step(question: Question) -> int:
    a, b = question.numbers[:2]
    return {
        "remainder": a - question.answer,
        "sum_of_three": a + b,
        "double_then_add": 2 * a,
        "average": a + b,
        "half_then_subtract": a // 2,
        "product_then_add": a * b,
    }[question.skill]


def written(question: Question) -> str:
    """The Challenger's output."""
    return f"<question>\n{question.text}\n</question>\n\n\\boxed{{{question.answer}}}"


def held_out() -> list[Question]:
    """Different questions for measurements and as evaluation set, as many of every skill; never shown."""
    generator = random.Random(HELD_OUT_SEED)
    chosen: dict[str, Question] = {}
    for place, skill in enumerate(FAMILIES, start=1):
        while len(chosen) < place * HELD_OUT_PER_SKILL:
            question = sample(generator, skill)
            chosen.setdefault(question.text, question)
    return list(chosen.values())


def write_evaluation_set(path: Path, questions: Iterable[Question]) -> None:
    """Write questions as JSON lines for `data.eval`."""
    rows = ({"question": q.text, "answer": str(q.answer), "skill": q.skill} for q in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prior_question(generator: random.Random) -> Question:
    """Draw a question as the Challenger's examples have them."""
    skill = generator.choices(list(PRIOR), list(PRIOR.values()))[0]
    places = range(len(FAMILIES[skill].surfaces))
    surface = generator.choices(places, [1 / (place + 1) for place in places])[0]
    return sample(generator, skill, surface)


def lesson_question(generator: random.Random) -> Question:
    """Draw a question as the Solver's examples have them."""
    return sample(generator, generator.choices(list(LESSONS), list(LESSONS.values()))[0])


def prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a user message without system message, thinking off."""
    return render_prompt(tokenizer, [{"role": "user", "content": text}], thinking=False)


def examples(
    tokenizer: Any, seed: int, held_out: Iterable[Question], *, slips: bool = False
) -> Iterator[Example]:
    """An endless stream for both roles, without the held-out questions; `slips`: with wrong work as well."""
    generator, reserved = random.Random(seed), {question.text for question in held_out}
    while True:
        challenger = generator.random() < CHALLENGER_SHARE
        question = (prior_question if challenger else lesson_question)(generator)
        if question.text in reserved:
            continue
        if challenger:
            yield _example(tokenizer, prompt(tokenizer, CHALLENGER_PROMPT), written(question))
            continue
        slipping = slips and generator.random() < SLIPS[question.skill]
        answer = work(question, generator if slipping else None)
        yield _example(tokenizer, prompt(tokenizer, question.text), answer)


def _example(tokenizer: Any, prompt: list[int], answer: str) -> Example:
    response = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return Example([*prompt, *response], [*[IGNORED] * len(prompt), *response])


def trimming_corpus(size: int = 6000, seed: int = 1) -> Sequence[str]:
    """The texts whose tokens the trimmed tokenizer keeps."""
    generator = random.Random(seed)
    questions = [sample(generator) for _ in range(size)]
    texts = ["system\nuser\nassistant\n", CHALLENGER_PROMPT]
    for question in questions:
        texts += [question.text, work(question), written(question)]
    return texts
