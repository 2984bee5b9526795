"""Measures the base model of the self-play examples in both roles, as self-play samples it.

The real local engine, temperature 1, top-p 0.99; the Solver is scored by the verifier `math`, the
Challenger's output is read as self-play reads it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from megatron_srpo.config.self_play import SelfPlayPromptConfig
from megatron_srpo.data.chat import decode_response
from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.extract import boxed
from megatron_srpo.rewards.math import verify
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.types import Request, SamplingParams
from megatron_srpo.selfplay.arithmetic import Question, parse
from megatron_srpo.selfplay.arithmetic_skills import FAMILIES
from megatron_srpo.selfplay.questions import Written, parse_question
from tools.tiny_qwen3.self_play_corpus import CHALLENGER_PROMPT, prompt

SAMPLES = 8
VOTES = 10
WRITTEN = 1024
JUDGED = 256
BAND = (0.3, 0.8)
RESPONSE_LIMIT = 64
Numbers = dict[str, float]
#: Of the Solver by skill; and of the Challenger.
Table = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A model of a folder with its engine."""

    engine: LocalEngine
    tokenizer: Any

    @classmethod
    def of(cls, folder: Path) -> "Measured":
        """Load a model folder."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(LocalEngine(folder, vocab_limit=len(tokenizer)), tokenizer)

    def sample(self, users: Sequence[str], count: int, name: str) -> list[list[str]]:
        """Return `count` responses to each user message."""
        prompts = [tuple(prompt(self.tokenizer, user)) for user in users]
        requests = [
            Request(f"{place}/{sample}", tokens, request_seed(0, f"{name}/{place}", 0, 0, sample))
            for place, tokens in enumerate(prompts)
            for sample in range(count)
        ]
        completions = self.engine.generate(requests, SamplingParams(1.0, 0.99, RESPONSE_LIMIT))
        texts = [decode_response(self.tokenizer, completion.tokens) for completion in completions]
        return [texts[start : start + count] for start in range(0, len(texts), count)]


def measure(folder: Path, questions: Sequence[Question]) -> Table:
    """Measure the Solver on `questions`, then the Challenger."""
    model = Measured.of(folder)
    return {"solver": solver_numbers(model, questions), "challenger": challenger_numbers(model)}


def solver_numbers(model: Measured, questions: Sequence[Question]) -> dict[str, Numbers]:
    """Return the Solver's numbers per skill, and over all questions under `all`."""
    groups = model.sample([question.text for question in questions], SAMPLES, "solver")
    by_skill: dict[str, list[Numbers]] = {skill: [] for skill in (*FAMILIES, "all")}
    for question, answers in zip(questions, groups, strict=True):
        numbers = _answered(question, answers)
        by_skill[question.skill].append(numbers)
        by_skill["all"].append(numbers)
    return {skill: _means(rows) for skill, rows in by_skill.items() if rows}


def _answered(question: Question, answers: Sequence[str]) -> Numbers:
    right = [is_right(answer, str(question.answer)) for answer in answers]
    share, label = vote(answers)
    return {
        f"avg@{SAMPLES}": sum(right) / len(right),
        f"pass@{SAMPLES}": float(any(right)),
        "majority is right": float(
            label is not None and is_right(f"\\boxed{{{label}}}", str(question.answer))
        ),
        "share of the majority": share,
        "in the band": float(BAND[0] <= share <= BAND[1]),
    }


def challenger_numbers(model: Measured) -> Numbers:
    """Return what the Challenger writes, and what the Solver makes of it."""
    texts = model.sample([CHALLENGER_PROMPT], WRITTEN, "challenger")[0]
    written = [one for text in texts if (one := parse_question(text, SelfPlayPromptConfig())) is not None]
    known = [(one, question) for one in written if (question := parse(one.question)) is not None]
    skills = Counter(question.skill for _, question in known)
    numbers = {
        "well-formed": len(written) / len(texts),
        "sentences of the grammar": len(known) / len(texts),
        "different questions": len({one.question for one in written}) / len(written) if written else 0.0,
        "own answer is right": _share([is_right(_box(one), str(q.answer)) for one, q in known]),
    }
    return (
        numbers | _judged(model, written) | {f"writes {s}": skills[s] / len(known) for s in FAMILIES if known}
    )


def _judged(model: Measured, written: Sequence[Written]) -> Numbers:
    """Let the Solver vote on some of the questions."""
    questions = [one.question for one in written[:JUDGED]]
    votes = [vote(answers) for answers in model.sample(questions, VOTES, "votes")]
    valid = [
        (parse(question), label)
        for question, (share, label) in zip(questions, votes, strict=True)
        if BAND[0] <= share <= BAND[1]
    ]
    known = [is_right(f"\\boxed{{{label}}}", str(q.answer)) for q, label in valid if q is not None]
    return {
        "in the band": len(valid) / len(votes) if votes else 0.0,
        "share of the majority": sum(share for share, _ in votes) / len(votes) if votes else 0.0,
        "label in the band is right": _share(known),
    }


def is_right(response: str, answer: str) -> bool:
    """Whether the verifier `math` accepts a response."""
    return verify(Prompt("measure", (), answer, "math"), response).value >= 0.5


def vote(answers: Sequence[str]) -> tuple[float, str | None]:
    """Return the share and the text of the most common boxed answer; the answers here are plain numbers."""
    counts = Counter(found for answer in answers if (found := boxed(answer)) is not None)
    if not counts:
        return 0.0, None
    label, count = counts.most_common(1)[0]
    return count / len(answers), label


def _box(written: Written) -> str:
    return f"\\boxed{{{written.own_answer}}}"


def _means(rows: Sequence[Numbers]) -> Numbers:
    return {"questions": len(rows), **{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}}


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
