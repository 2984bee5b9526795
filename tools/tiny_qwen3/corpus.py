"""What the warm-up shows the small model: student prompts, teacher prompts, and teacher prompts with a failed
attempt.

Three kinds of example (P prompt, S right solution, W solution with slips):

* `student`: P -> S. Kept short so that reinforcement learning has something left to do.
* `teacher`: P with S as demonstration -> S. Without it the self-teacher has nothing to say: a model
  trained from scratch does not read demonstrations by itself.
* `recovery`: P with S as demonstration -> W, as a failed rollout is scored. At the first wrong token the
  right one is the label, the rest of the wrong number has no label, and what follows from it is labelled
  as it stands. A teacher that repeats the demonstration whatever the prefix ruins the student.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from megatron_srpo.config.data import DEFAULT_DEMONSTRATION_TEMPLATE, DEFAULT_TEACHER_TEMPLATE
from tools.tiny_qwen3.families import EVALUATION_SEED, EVALUATION_SIZE, FAMILIES, Entry, Family, Span, text_of

IGNORED = -100  # PyTorch's label of a position without loss
KINDS = ("student", "teacher", "recovery")


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and response, and the label of every token (`IGNORED` where there is none)."""

    tokens: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Problem:
    """A problem of one family."""

    family: Family
    entry: Entry

    @property
    def question(self) -> str:
        return str(self.entry["question"])


def teacher_text(question: str, demonstration: str) -> str:
    """The self-teacher's user message, as training renders it by default."""
    section = DEFAULT_DEMONSTRATION_TEMPLATE.format(demonstration=demonstration.strip())
    return DEFAULT_TEACHER_TEMPLATE.format(question=question.strip(), demonstration=section, feedback="")


def render(tokenizer: Any, user_text: str) -> str:
    """The chat prompt, thinking off, up to where the assistant starts to answer."""
    messages = [{"role": "user", "content": user_text}]
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


def held_out(size: int = EVALUATION_SIZE) -> list[Problem]:
    """Per family, `size` problems for measurements: never shown in the warm-up."""
    return [
        Problem(family, entry)
        for family in FAMILIES
        for entry in distinct(family, EVALUATION_SEED, 10 * size)[:size]
    ]


def distinct(family: Family, seed: int, items: int) -> list[Entry]:
    """Those of a dataset's first `items` items whose question did not come before."""
    entries: dict[str, Entry] = {}
    for entry in family.dataset(seed, items):
        entries.setdefault(entry["question"], entry)
    return list(entries.values())


def training_problems(items: int, seed: int) -> list[list[Problem]]:
    """Per family, the different problems among `items` items, without the held-out questions."""
    reserved = {problem.question for problem in held_out()}
    pools = []
    for family in FAMILIES:
        entries = distinct(family, seed, items)
        pools.append([Problem(family, entry) for entry in entries if entry["question"] not in reserved])
    return pools


def response(tokenizer: Any, spans: list[Span]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a worked solution, ended by the end-of-turn token."""
    text = text_of(spans)
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens, labels = list(encoded["input_ids"]), list(encoded["input_ids"])
    start = 0
    for span in spans:
        end = start + len(span.text)
        if span.right is not None:
            right = tokenizer(text[:start] + span.right + text[end : end + 1])["input_ids"]
            first = next(i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b)
            labels[first] = right[first]
            for index in range(first + 1, len(tokens)):
                if encoded["offset_mapping"][index][0] < end:
                    labels[index] = IGNORED
        start = end
    return [*tokens, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def example(tokenizer: Any, problem: Problem, kind: str, rng: random.Random) -> Example:
    """One example of a problem; `kind` is one of `KINDS`."""
    solution = problem.family.solution(problem.entry)
    user_text = problem.question if kind == "student" else teacher_text(problem.question, text_of(solution))
    if kind == "recovery":
        solution = problem.family.failed_attempt(problem.entry, rng, slips=rng.choice((1, 1, 1, 2)))
    prompt = tokenizer(render(tokenizer, user_text))["input_ids"]
    tokens, labels = response(tokenizer, solution)
    return Example(prompt + tokens, [IGNORED] * len(prompt) + labels)


def trimming_corpus(pools: list[list[Problem]], rng: random.Random) -> list[str]:
    """The texts whose tokens the trimmed tokenizer keeps."""
    texts = ["system\nuser\nassistant\n"]
    for problem in (problem for pool in pools for problem in pool[:2000]):
        solution = text_of(problem.family.solution(problem.entry))
        attempt = text_of(problem.family.failed_attempt(problem.entry, rng))
        texts += [problem.question, solution, attempt, teacher_text(problem.question, solution)]
    return texts


def digest(pools: list[list[Problem]]) -> str:
    """sha256 of all questions in order: tells whether a rebuilt corpus is the recorded one."""
    text = "\0".join(problem.question for pool in pools for problem in pool)
    return hashlib.sha256(text.encode()).hexdigest()
