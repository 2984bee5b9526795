"""The measurements, on hand-made rollouts and on the carried model."""

import math
from typing import Any

import pytest
import torch

from tools.tiny_qwen3 import corpus, measure
from tools.tiny_qwen3.corpus import Problem, teacher_text
from tools.tiny_qwen3.families import FAMILIES, text_of
from tools.tiny_qwen3.measure import Failure, Rollouts, Study, Taught


@pytest.fixture(scope="module")
def study(carried_model: Any, tokenizer: Any) -> Study:
    return Study(carried_model, tokenizer)


@pytest.fixture(scope="module")
def problem() -> Problem:
    family = next(f for f in FAMILIES if f.name == "chain_sum")
    return Problem(family, family.dataset(6_000_000, 1)[0])


def altered(study: Study, problem: Problem) -> list[int]:
    """The worked solution with the last digit of the first result changed, all else as it was."""
    tokens = study.worked_solution(problem)
    at = study.tokenizer.convert_ids_to_tokens(tokens).index("Ċ") - 1
    digit = int(study.tokenizer.decode([tokens[at]]))
    return [*tokens[:at], study.tokenizer.convert_tokens_to_ids(str((digit + 1) % 10)), *tokens[at + 1 :]]


def test_first_difference() -> None:
    assert measure.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert measure.first_difference([1, 2], [1, 2, 3]) is None
    assert measure.first_difference([], [1]) is None


def test_jensen_shannon_against_the_definition_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.softmax(torch.randn(4, 9, generator=generator, dtype=torch.float64), -1) for _ in range(2))
    found = measure.jensen_shannon(p.log(), q.log())
    for row in range(4):
        mixed = [(a + b) / 2 for a, b in zip(p[row].tolist(), q[row].tolist(), strict=True)]
        expected = sum(
            0.5 * a * math.log(a / m) + 0.5 * b * math.log(b / m)
            for a, b, m in zip(p[row].tolist(), q[row].tolist(), mixed, strict=True)
        )
        assert float(found[row]) == pytest.approx(expected, rel=1e-6)  # log 2 is taken in fp32


def test_jensen_shannon_bounds() -> None:
    p = torch.tensor([[0.0, -60.0]])
    assert float(measure.jensen_shannon(p, p)) == pytest.approx(0, abs=1e-6)
    assert float(measure.jensen_shannon(p, p.flip(-1))) == pytest.approx(math.log(2), rel=1e-5)


def test_student_numbers_on_hand_made_groups(problem: Problem) -> None:
    sampled = [
        Rollouts(problem, [[1] * 4, [1] * 8], [True, False]),
        Rollouts(problem, [[1] * 4, [1] * 4], [False, False]),
        Rollouts(problem, [[1] * 4, [1] * 4], [True, True]),
        Rollouts(problem, [[1] * 4, [1] * 4], [True, True]),
    ]
    greedy = [Rollouts(problem, [[1]], [right]) for right in (True, False, True, False)]
    assert measure.student_numbers(sampled, greedy, limit=8) == {
        "problems": 4,
        "pass@1": 0.625,
        "pass@8": 0.75,
        "mixed groups": 0.25,
        "greedy": 0.5,
        "response tokens": 4.5,
        "truncated": 0.125,
    }


def test_worked_solution_is_correct_and_needs_its_end(study: Study, problem: Problem) -> None:
    tokens = study.worked_solution(problem)
    assert study.correct(problem, tokens)
    assert not study.correct(problem, tokens[:-1])  # cut off before the end of the turn
    assert not study.correct(problem, altered(study, problem)[:-2] + tokens[-1:])


def test_failures_depart_where_the_wrong_digit_stands(study: Study, problem: Problem) -> None:
    right, wrong = study.worked_solution(problem), altered(study, problem)
    group = Rollouts(problem, [wrong, right, right], [False, True, True])
    (failure,) = study.failures([group])
    assert failure.response == wrong
    assert wrong[failure.departure] != failure.right_token == right[failure.departure]
    assert wrong[: failure.departure] == right[: failure.departure]
    user = teacher_text(problem.question, text_of(problem.family.solution(problem.entry)))
    assert failure.teacher_prompt == study.prompt(user)
    assert failure.student_prompt == study.prompt(problem.question)


def test_failures_need_a_demonstration_with_right_work(study: Study, problem: Problem) -> None:
    right, wrong = study.worked_solution(problem), altered(study, problem)
    lucky = Rollouts(
        problem, [wrong, right, wrong], [True, True, False]
    )  # the first right answer had wrong work
    hopeless = Rollouts(problem, [wrong, wrong], [False, False])
    assert study.failures([lucky, hopeless]) == []


def test_failure_numbers_when_teacher_and_student_are_the_same(study: Study, problem: Problem) -> None:
    """With one prompt for both there is nothing to gain and nothing to disagree about."""
    prompt, response = study.prompt(problem.question), altered(study, problem)
    numbers = measure.failure_numbers(study, Failure(prompt, prompt, response, 3, 7))
    assert numbers["log-prob gain of the right token"] == 0
    assert numbers["agreement after a wrong prefix"] == 1
    assert numbers["divergence"] == pytest.approx(0, abs=1e-6)


def test_a_failure_at_the_last_token_has_nothing_after_it(study: Study, problem: Problem) -> None:
    prompt, response = study.prompt(problem.question), altered(study, problem)
    numbers = measure.failure_numbers(study, Failure(prompt, prompt, response, len(response) - 1, 7))
    assert "agreement after a wrong prefix" not in numbers


def test_log_probs_are_those_of_the_full_forward_pass(study: Study, problem: Problem) -> None:
    prompt, response = study.prompt(problem.question), study.worked_solution(problem)
    found = study.log_probs(prompt, response)
    with torch.no_grad():
        logits = study.model(input_ids=torch.tensor([prompt + response])).logits[0]
    expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # fp32, the head on fewer rows


def test_no_solved_problem_gives_no_teacher_numbers(study: Study, problem: Problem) -> None:
    group = Rollouts(problem, [altered(study, problem)], [False])
    assert measure.teach(study, [group]) == [None]
    assert measure.teacher_numbers([]) == {"failures": 0}


def test_teach_keeps_the_order_of_the_problems(study: Study, problem: Problem) -> None:
    right, wrong = study.worked_solution(problem), altered(study, problem)
    hopeless = Rollouts(problem, [wrong, wrong[:-1]], [False, False])
    half = Rollouts(problem, [right, wrong[:-1]], [True, False])
    nothing, taught = measure.teach(study, [hopeless, half])
    assert nothing is None
    assert taught is not None
    assert (taught.student_accuracy, taught.right_work, len(taught.failures)) == (0.5, True, 1)
    assert 0 <= taught.teacher_accuracy <= 1


def test_teacher_numbers_weigh_problems_and_failures() -> None:
    taught = [
        Taught(0.5, 1.0, True, [{"gain": 1.0, "after": 0.5}, {"gain": 2.0}]),
        Taught(0.25, 0.5, False, []),
    ]
    assert measure.teacher_numbers(taught) == {
        "teacher accuracy": 0.75,
        "student accuracy on the same problems": 0.375,
        "demonstrations with right work": 0.5,
        "failures": 2,
        "gain": 1.5,
        "after": 0.5,
    }


def test_measure_reports_every_family_and_all(study: Study) -> None:
    problems = corpus.held_out(3)
    table = measure.measure(study, problems)
    assert list(table) == [*(family.name for family in FAMILIES), "all"]
    assert table["all"]["problems"] == len(problems)
    for numbers in table.values():
        assert 0 <= numbers["pass@1"] <= numbers["pass@8"] <= 1
        assert numbers["mixed groups"] <= numbers["pass@8"]
