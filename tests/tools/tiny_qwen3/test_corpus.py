"""What the warm-up is made of: prompts as in training, labels, and nothing held out."""

import random
from typing import Any

import pytest

from megatron_srpo.data.generated import spread_seed
from tools.tiny_qwen3 import corpus
from tools.tiny_qwen3.corpus import IGNORED, Problem
from tools.tiny_qwen3.families import EVALUATION_SEED, FAMILIES, Span, text_of

SOLUTION = [Span("58+26="), Span("84"), Span("\nAnswer: 84")]


@pytest.fixture(scope="module")
def pools() -> list[list[Problem]]:
    return corpus.training_problems(300, seed=7)


def visible(tokenizer: Any, labels: list[int]) -> str:
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


def test_teacher_text_is_the_default_template_of_the_package() -> None:
    assert corpus.teacher_text("What is 1 + 1?\n", " 1+1=2\nAnswer: 2") == (
        "What is 1 + 1?\n\nCorrect solution:\n\n1+1=2\nAnswer: 2\n\nCorrectly solve the original question."
    )


def test_prompt_is_the_qwen3_template_with_thinking_off(tokenizer: Any) -> None:
    assert corpus.render(tokenizer, "Hello") == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_right_solution_is_labelled_throughout(tokenizer: Any) -> None:
    tokens, labels = corpus.response(tokenizer, SOLUTION)
    assert tokens == labels
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == text_of(SOLUTION)


def test_first_wrong_token_is_labelled_with_the_right_one_and_the_rest_of_the_number_not(
    tokenizer: Any,
) -> None:
    wrong = [Span("58+26="), Span("763", right="84"), Span("\nAnswer: 763")]
    tokens, labels = corpus.response(tokenizer, wrong)
    assert tokenizer.decode(tokens[:-1]) == "58+26=763\nAnswer: 763"
    assert visible(tokenizer, labels[:-1]) == "58+26=8\nAnswer: 763"
    assert labels.count(IGNORED) == 2


def test_a_right_first_digit_keeps_its_label(tokenizer: Any) -> None:
    wrong = [Span("58+26="), Span("83", right="84"), Span("\nAnswer: 83")]
    _, labels = corpus.response(tokenizer, wrong)
    assert visible(tokenizer, labels[:-1]) == "58+26=84\nAnswer: 83"
    assert IGNORED not in labels


def test_a_number_that_should_have_ended_is_labelled_with_the_end(tokenizer: Any) -> None:
    wrong = [Span("58+26="), Span("845", right="84"), Span("\nAnswer: 845")]
    _, labels = corpus.response(tokenizer, wrong)
    assert visible(tokenizer, labels[:-1]) == "58+26=84\n\nAnswer: 845"


def test_a_wrong_sign_is_labelled_although_it_is_one_token_with_the_equals_sign(tokenizer: Any) -> None:
    wrong = [Span("4-10="), Span("6", right="-6"), Span("\nAnswer: 6")]
    tokens, labels = corpus.response(tokenizer, wrong)
    assert tokenizer.convert_ids_to_tokens(tokens[4:5]) == ["="]
    assert visible(tokenizer, labels[:-1]) == "4-10=-\nAnswer: 6"


def test_student_and_teacher_examples(tokenizer: Any, pools: list[list[Problem]]) -> None:
    problem = pools[0][0]
    solution = text_of(problem.family.solution(problem.entry))
    for kind, user in (
        ("student", problem.question),
        ("teacher", corpus.teacher_text(problem.question, solution)),
    ):
        made = corpus.example(tokenizer, problem, kind, random.Random(0))
        assert tokenizer.decode(made.tokens) == corpus.render(tokenizer, user) + solution + "<|im_end|>"
        assert visible(tokenizer, made.labels) == solution + "<|im_end|>"


def test_recovery_examples_show_the_right_solution_and_continue_a_wrong_one(
    tokenizer: Any, pools: list[list[Problem]]
) -> None:
    rng, differing = random.Random(0), 0
    for problem in (problem for pool in pools for problem in pool[:20]):
        solution = text_of(problem.family.solution(problem.entry))
        prompt = corpus.render(tokenizer, corpus.teacher_text(problem.question, solution))
        text = tokenizer.decode(corpus.example(tokenizer, problem, "recovery", rng).tokens)
        assert text.startswith(prompt)
        differing += text != prompt + solution + "<|im_end|>"
    assert differing > 20 * len(pools) * 0.9


def test_held_out_questions_are_not_in_the_warm_up(pools: list[list[Problem]]) -> None:
    held_out = {problem.question for problem in corpus.held_out()}
    shown = {problem.question for pool in pools for problem in pool}
    assert len(held_out) == 64 * len(FAMILIES)
    assert not held_out & shown


def test_a_warm_up_drawn_from_the_held_out_seed_is_left_with_other_questions() -> None:
    """The exclusion is by text: with the seed of the evaluation itself the filter has something to do."""
    pools = corpus.training_problems(64, seed=EVALUATION_SEED)
    assert sum(map(len, pools)) == 0


def test_evaluation_seed_is_what_the_package_makes_of_a_source_seed() -> None:
    assert spread_seed(9) == EVALUATION_SEED


def test_questions_of_a_pool_differ(pools: list[list[Problem]]) -> None:
    for pool in pools:
        assert len({problem.question for problem in pool}) == len(pool) > 100


def test_digest_depends_on_the_questions(pools: list[list[Problem]]) -> None:
    assert corpus.digest(pools) == corpus.digest(corpus.training_problems(300, seed=7))
    assert corpus.digest(pools) != corpus.digest(pools[1:])


def test_trimming_corpus_contains_all_texts_that_training_shows(pools: list[list[Problem]]) -> None:
    texts = corpus.trimming_corpus(pools, random.Random(0))
    problem = pools[-1][5]
    assert problem.question in texts
    assert corpus.teacher_text(problem.question, text_of(problem.family.solution(problem.entry))) in texts
