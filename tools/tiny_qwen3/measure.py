"""Measures what matters before reinforcement learning starts: the student's head-room, and whether the
teacher knows more.

The student sees the question; the teacher is the same model with its first correct sibling as
demonstration. A failed rollout *departs* at its first token that differs from the worked solution; the
token of the worked solution there is the *right token*. After that position the prefix is wrong and the
teacher should agree with the student again. Only problems whose demonstration equals the worked solution
are counted there: some right answers are luck after wrong work, and no token of theirs is known right.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tools.tiny_qwen3.corpus import Problem, render, response, teacher_text
from tools.tiny_qwen3.families import is_correct
from tools.tiny_qwen3.sampling import generate

RESPONSE_LIMIT = 64
SAMPLES = 8
TEACHER_SAMPLES = 4
Numbers = dict[str, float]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def share(flags: list[bool]) -> float:
    return mean([float(flag) for flag in flags])


@dataclass(frozen=True)
class Rollouts:
    """Responses of one problem, and which of them are right."""

    problem: Problem
    responses: list[list[int]]
    correct: list[bool]


@dataclass(frozen=True)
class Failure:
    """A failed rollout as the trainer distils it: both prompts, the response, where it departs and what was
    right there.
    """

    student_prompt: list[int]
    teacher_prompt: list[int]
    response: list[int]
    departure: int
    right_token: int


class Study:
    """A model with its tokenizer, and the measurements on it."""

    def __init__(self, model: Any, tokenizer: Any, seed: int = 0) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.seed = seed
        self.datasets: dict[str, Any] = {}

    def prompt(self, user_text: str) -> list[int]:
        return list(self.tokenizer(render(self.tokenizer, user_text))["input_ids"])

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def correct(self, problem: Problem, tokens: list[int]) -> bool:
        """Whether the response was ended by the model and its answer passes the verifier."""
        family = problem.family
        dataset = self.datasets.setdefault(family.name, family.dataset(0, 1))
        ended = tokens[-1] == self.tokenizer.eos_token_id
        return ended and is_correct(dataset, problem.entry, self.text(tokens))

    def sample(
        self, problems: list[Problem], user_texts: list[str], count: int, temperature: float
    ) -> list[Rollouts]:
        """`count` responses per problem to the given user texts."""
        prompts = [self.prompt(text) for text in user_texts for _ in range(count)]
        drawn = generate(self.model, prompts, RESPONSE_LIMIT, temperature, self.seed)
        groups = [drawn[i : i + count] for i in range(0, len(drawn), count)]
        return [
            Rollouts(problem, group, [self.correct(problem, tokens) for tokens in group])
            for problem, group in zip(problems, groups, strict=True)
        ]

    def failures(self, groups: list[Rollouts]) -> list[Failure]:
        """The failed rollouts of the problems whose demonstration is the worked solution."""
        found = []
        for group in groups:
            right = self.worked_solution(group.problem)
            if not any(group.correct) or demonstration(group) != right:
                continue
            teacher = self.prompt(self.demonstration_text(group))
            student = self.prompt(group.problem.question)
            for tokens, correct in zip(group.responses, group.correct, strict=True):
                if not correct:
                    departure = first_difference(tokens, right)
                    if departure is not None:
                        found.append(Failure(student, teacher, tokens, departure, right[departure]))
        return found

    def demonstration_text(self, group: Rollouts) -> str:
        """The teacher's user message with the first correct sibling."""
        return teacher_text(group.problem.question, self.text(demonstration(group)))

    def worked_solution(self, problem: Problem) -> list[int]:
        return response(self.tokenizer, problem.family.solution(problem.entry))[0]

    @torch.no_grad()
    def log_probs(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        """Log-probabilities [T, V] at the positions of the response `tokens`."""
        inputs = torch.tensor([prompt + tokens])
        logits = self.model(input_ids=inputs, logits_to_keep=len(tokens) + 1).logits[0, :-1]
        return torch.log_softmax(logits, -1)


def demonstration(group: Rollouts) -> list[int]:
    """The first correct response."""
    return group.responses[group.correct.index(True)]


def first_difference(left: list[int], right: list[int]) -> int | None:
    """Index of the first position where both lists have a token and the tokens differ."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)


def jensen_shannon(left_TV: torch.Tensor, right_TV: torch.Tensor) -> torch.Tensor:
    """Divergence [T] in nats of two lists of log-probabilities."""
    middle = torch.logaddexp(left_TV, right_TV) - torch.log(torch.tensor(2.0))
    left = (left_TV.exp() * (left_TV - middle)).sum(-1)
    return ((right_TV.exp() * (right_TV - middle)).sum(-1) + left) / 2


def student_numbers(sampled: list[Rollouts], greedy: list[Rollouts], limit: int = RESPONSE_LIMIT) -> Numbers:
    """Accuracy, head-room and length of the student's answers."""
    lengths = [len(tokens) for group in sampled for tokens in group.responses]
    return {
        "problems": len(sampled),
        "pass@1": mean([share(group.correct) for group in sampled]),
        f"pass@{SAMPLES}": share([any(group.correct) for group in sampled]),
        "mixed groups": share([any(group.correct) and not all(group.correct) for group in sampled]),
        "greedy": share([group.correct[0] for group in greedy]),
        "response tokens": mean([float(length) for length in lengths]),
        "truncated": share([length >= limit for length in lengths]),
    }


def failure_numbers(study: Study, failure: Failure) -> Numbers:
    """Teacher against student along one failed rollout."""
    student = study.log_probs(failure.student_prompt, failure.response)
    teacher = study.log_probs(failure.teacher_prompt, failure.response)
    at, right = failure.departure, failure.right_token
    divergence = jensen_shannon(student, teacher)
    agree = (student.argmax(-1) == teacher.argmax(-1)).float()
    after = slice(at + 1, None)
    numbers = {
        "log-prob gain of the right token": float(teacher[at, right] - student[at, right]),
        "teacher's probability of the right token": float(teacher[at, right].exp()),
        "student's probability of the right token": float(student[at, right].exp()),
        "divergence at the first wrong token": float(divergence[at]),
        "teacher entropy": float(-(teacher.exp() * teacher).sum(-1).mean()),
        "divergence": float(divergence.mean()),
    }
    if at + 1 < len(failure.response):
        numbers["agreement after a wrong prefix"] = float(agree[after].mean())
        numbers["divergence after a wrong prefix"] = float(divergence[after].mean())
    return numbers


@dataclass(frozen=True)
class Taught:
    """Teacher against student on one problem with at least one right answer."""

    student_accuracy: float
    teacher_accuracy: float
    right_work: bool  # the demonstration equals the worked solution
    failures: list[Numbers]


def teach(study: Study, sampled: list[Rollouts]) -> list[Taught | None]:
    """Sample under the teacher's prompt, compare on failed rollouts; None for problems never solved."""
    solved = [group for group in sampled if any(group.correct)]
    texts = [study.demonstration_text(group) for group in solved]
    taught = iter(study.sample([group.problem for group in solved], texts, TEACHER_SAMPLES, 1.0))
    return [_taught(study, group, next(taught)) if any(group.correct) else None for group in sampled]


def _taught(study: Study, group: Rollouts, teacher: Rollouts) -> Taught:
    return Taught(
        student_accuracy=share(group.correct),
        teacher_accuracy=share(teacher.correct),
        right_work=demonstration(group) == study.worked_solution(group.problem),
        failures=[failure_numbers(study, failure) for failure in study.failures([group])],
    )


def teacher_numbers(taught: list[Taught]) -> Numbers:
    """What the self-teacher knows beyond the student, over problems with at least one right answer."""
    rows = [row for problem in taught for row in problem.failures]
    if not taught:  # a model that solves nothing has no demonstrations
        return {"failures": 0.0}
    numbers = {
        "teacher accuracy": mean([problem.teacher_accuracy for problem in taught]),
        "student accuracy on the same problems": mean([problem.student_accuracy for problem in taught]),
        "demonstrations with right work": share([problem.right_work for problem in taught]),
        "failures": float(len(rows)),
    }
    for name in dict.fromkeys(name for row in rows for name in row):
        numbers[name] = mean([row[name] for row in rows if name in row])
    return numbers


def measure(study: Study, problems: list[Problem]) -> dict[str, Numbers]:
    """All numbers per family, and over all problems under `all`."""
    texts = [problem.question for problem in problems]
    sampled = study.sample(problems, texts, SAMPLES, 1.0)
    greedy = study.sample(problems, texts, 1, 0.0)
    taught = teach(study, sampled)
    results = {}
    for name in [*dict.fromkeys(problem.family.name for problem in problems), "all"]:
        chosen = [i for i, problem in enumerate(problems) if name in (problem.family.name, "all")]
        student = student_numbers([sampled[i] for i in chosen], [greedy[i] for i in chosen])
        results[name] = student | teacher_numbers([t for i in chosen if (t := taught[i]) is not None])
    return results
