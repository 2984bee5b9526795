import pickle

import pytest
import reasoning_gym

from megatron_srpo.config.data import SourceConfig
from megatron_srpo.data.generated import (
    EXCLUDED_FAMILIES,
    check_family,
    create_family,
    generate,
    spread_seed,
)
from megatron_srpo.data.reports import BadRows, LoadReport
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError


def run(policy: str = "refuse", **fields: object) -> tuple[list[Prompt], LoadReport]:
    report = LoadReport("set")
    source = SourceConfig(kind="reasoning_gym", **fields)  # type: ignore[arg-type]
    return generate(source, BadRows(policy, report)), report


def test_prompts_carry_what_the_scorer_needs() -> None:
    prompts, report = run(family="gcd", size=5, seed=3, system="S", prompt_suffix=" Reply briefly.")
    entry = reasoning_gym.create_dataset("gcd", seed=spread_seed(3), size=5)[0]
    first = prompts[0]
    assert first.id == "gcd/0"
    assert first.messages[0] == {"role": "system", "content": "S"}
    assert first.question == entry["question"] + " Reply briefly."
    assert first.answer == entry["answer"]
    assert (first.task, first.source, first.metadata["family"]) == ("reasoning_gym", "gcd", "gcd")
    assert first.metadata["entry"] == entry
    assert pickle.loads(pickle.dumps(first)) == first
    assert (len(prompts), report.missing) == (5, 0)


def test_generation_is_a_pure_function_and_longer_sets_extend_shorter_ones() -> None:
    short, _ = run(family="count_bits", size=20)
    long, _ = run(family="count_bits", size=40)
    assert long[:20] == short


def test_options_reach_the_family() -> None:
    prompts, _ = run(family="gcd", size=10, config={"min_value": 7, "max_value": 9})
    assert all(set(prompt.question.split()) & {"7", "8", "9", "7,", "8,", "9,"} for prompt in prompts)


def test_neighbouring_seeds_share_no_more_questions_than_chance() -> None:
    # reasoning-gym's own seeds 0 and 1 share 99 of 100 items; ours must not.
    first = {prompt.question for prompt in run(family="chain_sum", size=100, seed=0)[0]}
    second = {prompt.question for prompt in run(family="chain_sum", size=100, seed=1)[0]}
    assert len(first & second) <= 2
    theirs = [
        {
            reasoning_gym.create_dataset("chain_sum", seed=seed, size=100)[index]["question"]
            for index in range(100)
        }
        for seed in (0, 1)
    ]
    assert len(theirs[0] & theirs[1]) == 99


def test_repeated_questions_are_left_out_and_counted() -> None:
    prompts, report = run(family="gcd", size=50, config={"min_value": 1, "max_value": 3})
    questions = [prompt.question for prompt in prompts]
    assert len(questions) == len(set(questions)) < 50
    assert report.duplicates > 0
    assert report.missing == 50 - len(prompts)


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"no reasoning-gym family 'letter_countng'; did you mean letter_counting"
    ):
        check_family("letter_countng")
    with pytest.raises(DataError, match=r"known: .*gcd"):
        check_family("qqqqqqqqq")


@pytest.mark.parametrize("family", sorted(EXCLUDED_FAMILIES))
def test_families_that_cannot_be_trusted_are_refused(family: str) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        run(family=family)


def test_the_excluded_verifiers_are_still_broken() -> None:
    """The reason for each exclusion; when reasoning-gym mends it, this test says so."""
    halting = reasoning_gym.create_dataset("game_of_life_halting", seed=0, size=1)
    assert halting.score_answer("no idea", halting[0]) == 1.0
    twenty_four = reasoning_gym.create_dataset("puzzle24", seed=0, size=20)
    assert all(twenty_four.score_answer("6*4*1*1", twenty_four[index]) == 1.0 for index in range(20))


@pytest.mark.parametrize("options", [{"max_vale": 3}, {"min_value": 9, "max_value": 3}, {"min_value": "x"}])
def test_wrong_options_are_refused_with_the_right_names(options: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"refuses config .*its options are .*max_value"):
        create_family("gcd", options)


def test_size_and_seed_belong_beside_the_options() -> None:
    with pytest.raises(DataError, match="set 'seed' beside 'config'"):
        run(family="gcd", config={"seed": 3})


def test_items_that_cannot_be_generated_are_bad_rows() -> None:
    options = {"min_grid_size": 5, "max_grid_size": 5, "min_dist": 40, "max_dist": 50}
    prompts, report = run("skip", family="maze", size=3, config=options)
    assert report.bad > 0
    assert len(prompts) + report.missing == 3
    assert report.examples[0].startswith("maze[seed 0, item ")
    with pytest.raises(DataError, match=r"maze\[seed 0, item \d+\]: "):
        run("refuse", family="maze", size=3, config=options)
