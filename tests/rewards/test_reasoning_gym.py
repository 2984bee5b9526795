"""Every reasoning-gym family in use through its own scorer, and the guards around the scorers."""

import functools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from megatron_srpo.config.data import SourceConfig
from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.data.generated import EXCLUDED_FAMILIES, generate
from megatron_srpo.data.reports import BadRows, LoadReport
from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards import reasoning_gym as rewards
from megatron_srpo.rewards.registry import load_verifier
from megatron_srpo.rewards.scoring import score_response
from megatron_srpo.rewards.types import NO_ANSWER, WRONG_ANSWER, Score

#: Generating one item of these takes 0.2 to 1 s.
SLOW = {"knight_swap", "futoshiki", "sokoban", "intermediate_integration", "zebra_puzzles", "arc_agi"}
FAMILIES = sorted(DATASETS.keys() - EXCLUDED_FAMILIES.keys() - SLOW)
#: The stored answer is None, so there is nothing to score (notes of reasoning-gym 0.1.25).
WITHOUT_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
CONFIG = RewardConfig(environment_feedback=True)


@functools.cache
def prompts(family: str, size: int = 2) -> tuple[Prompt, ...]:
    source = SourceConfig(kind="reasoning_gym", family=family, size=size)
    return tuple(generate(source, BadRows("refuse", LoadReport(family))))


def score(prompt: Prompt, response: str) -> Score:
    return score_response(load_verifier("reasoning_gym"), prompt, response, CONFIG)


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_scores_one_and_nonsense_scores_zero(family: str) -> None:
    for prompt in prompts(family):
        if family not in WITHOUT_GOLD:
            right = score(prompt, f"I think so.\n<answer>{prompt.answer}</answer><|im_end|>")
            assert (right.value, right.error) == (1.0, None)
        for nonsense in ("<answer>qwerty</answer>", "<answer>[1, 2</answer>", "<answer>(((</answer>"):
            assert score(prompt, nonsense).value == 0.0
        assert score(prompt, "<think>never closed") == Score(0.0, feedback=NO_ANSWER)


def test_an_exception_of_a_scorer_is_an_error_and_not_a_crash() -> None:
    result = score(prompts("prime_factorization")[0], "Answer: two")
    assert result.value == 0.0
    assert result.error is not None
    assert result.error.startswith("ValueError: ")


@pytest.mark.parametrize(
    "form", ["{}", "Answer: {}", "\\boxed{{{}}}", "<answer>{}</answer>", "The answer is {}."]
)
def test_forms_of_the_answer(form: str) -> None:
    prompt = prompts("gcd")[0]
    assert score(prompt, form.format(prompt.answer)).value == 1.0
    assert score(prompt, form.format(int(prompt.answer or 0) + 1)) == Score(0.0, feedback=WRONG_ANSWER)


def test_partial_credit_counts_only_when_asked_for() -> None:
    prompt = prompts("gcd")[0]
    response = f"<answer>{prompt.answer} or so</answer>"
    assert score(prompt, response).value == 0.0
    partial = rewards.verify(prompt, response).value
    assert 0.0 < partial < 1.0
    graded = RewardConfig(binary=False)
    assert score_response(load_verifier("reasoning_gym"), prompt, response, graded).value == partial


@pytest.mark.parametrize("family", sorted(rewards.TAIL_BLIND))
def test_text_behind_a_right_answer_is_not_right(family: str) -> None:
    for prompt in prompts(family, 30):
        assert score(prompt, f"<answer>{prompt.answer}</answer>").value == 1.0
        assert score(prompt, f"<answer>{prompt.answer} xyz</answer>").value == 0.0
        assert score(prompt, f"<answer>{prompt.answer}xyz</answer>").value == 0.0


def test_the_scorer_runs_with_the_options_of_the_source() -> None:
    """The decimal places that decimal_arithmetic compares are an option of the family."""
    source = SourceConfig(
        kind="reasoning_gym", family="decimal_arithmetic", size=1, config={"max_num_decimal_places": 3}
    )
    prompt = generate(source, BadRows("refuse", LoadReport("d")))[0]
    rewards.prepare(prompt)
    assert (
        rewards._scorer("decimal_arithmetic", '{"max_num_decimal_places": 3}').config.max_num_decimal_places
        == 3
    )
    assert score(prompt, f"Answer: {prompt.answer}").value == 1.0


EVALUATED = sorted(rewards.EVALUATED_LISTS | rewards.EVALUATED_EXPRESSIONS)
ATTACKS = [
    "__import__('os').system('touch {path}')",
    "open('{path}', 'w')",
    "[open('{path}', 'w')]",
    "(lambda: open('{path}', 'w'))()",
    "[].__class__.__base__.__subclasses__()",
    "exec('import pathlib; pathlib.Path(chr(47)).touch()')",
    "print(1)",
    "x.evalf()",
]


@pytest.mark.parametrize("family", [name for name in EVALUATED if name not in SLOW])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_answer_runs_as_code(family: str, attack: str, tmp_path: Path) -> None:
    """Eight of reasoning-gym's scorers give the answer to eval; none of these may get there."""
    target = tmp_path / "proof"
    result = score(prompts(family)[0], f"<answer>{attack.format(path=target)}</answer>")
    assert not os.path.exists(target)
    assert result.value == 0.0
    assert result.error is not None
    assert "not of the form" in result.error


@given(st.text(alphabet="abx_()'\".[]{}=0, \n*/+-^:;#@", max_size=40))
def test_what_passes_the_guard_cannot_call_a_name_or_reach_an_attribute(answer: str) -> None:
    import ast

    for family in ("string_insertion", "countdown"):
        if not rewards.safe_to_score(family, answer):
            continue
        try:
            tree = ast.parse(answer.strip(), mode="eval")
        except (SyntaxError, ValueError):
            continue
        assert not any(isinstance(node, ast.Attribute) for node in ast.walk(tree))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert all(not isinstance(call, ast.Name) or len(call.id) == 1 or call.id == "abs" for call in calls)
        if family == "string_insertion":
            assert calls == []


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("countdown", "(94 - 61)*4.5 + 6/2"),
        ("simple_integration", "-34*x**8/15 - 5*x/4 + C"),
        ("intermediate_integration", "-2*x**3*cos(x) + exp(x)*log(x) - 12*sin(x) + C"),
        ("polynomial_multiplication", "-896*x**4 + 2240*x**3"),
        ("n_queens", "_ Q _ _\n_ _ _ Q"),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]"),
        ("binary_matrix", "[[0, 1], [1, 2]]"),
        ("gcd", "anything (at) all.__class__"),
    ],
)
def test_honest_answers_pass_the_guard(family: str, answer: str) -> None:
    assert rewards.safe_to_score(family, answer)


def test_which_families_may_run_without_a_time_limit() -> None:
    assert rewards.is_cheap(prompts("gcd")[0])
    assert rewards.is_cheap(prompts("chain_sum")[0])
    assert not rewards.is_cheap(prompts("countdown")[0])
    assert not rewards.is_cheap(prompts("prime_factorization")[0])
