"""docs/self_play.md: its keys exist, what it says about R-Zero is so, and its numbers are the code's."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_srpo.config.loader import build, to_tree
from megatron_srpo.config.self_play import ChallengerRewardConfig
from megatron_srpo.launch.self_play_recipes import self_play_config
from megatron_srpo.report.run_data import flatten
from megatron_srpo.selfplay.diversity import Limits, measure_diversity
from megatron_srpo.selfplay.folders import CONFIG, ITERATIONS, MEMORY, QUESTIONS, SKILLS
from megatron_srpo.selfplay.state import STATE
from megatron_srpo.selfplay.verdicts import CHANGE, FEWEST_PAIRS, MOST
from tests.selfplay.made_up import questions

TEXT = (Path(__file__).resolve().parents[2] / "docs/self_play.md").read_text(encoding="utf-8")
R_ZERO: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0])


def recipe(name: str) -> dict[str, Any]:
    return flatten(to_tree(self_play_config(name)))


def test_the_lines_turn_r_diverse_into_r_zero() -> None:
    """As the recipes have it, but for folders and for how skills are measured."""
    zero, diverse = recipe("qwen3-4b-base-r-zero"), recipe("qwen3-4b-base-r-diverse")
    said = flatten(R_ZERO)
    assert {key: zero[key] for key in said} == said
    differing = {key for key in zero if zero[key] != diverse.get(key)} - set(said)
    assert [key for key in differing if not key.endswith("output_dir") and not key.startswith("skill.")] == []


def test_each_line_changes_the_default_as_it_says() -> None:
    comments = dict(re.findall(r"^\s*(\w+): \S+\s+# R-Diverse: ([\w.-]+)", TEXT, re.MULTILINE))
    defaults = {**flatten(to_tree(ChallengerRewardConfig())), "replay": 0.3, "iterations": 5}
    assert comments and set(comments) == {key.split(".")[-1] for key in flatten(R_ZERO)}
    for key, value in comments.items():
        assert yaml.safe_load(value) == defaults[key]


def test_r_zeros_reward_can_be_built() -> None:
    assert build(ChallengerRewardConfig, R_ZERO["reward"]).lowest == 0.0


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`((?:pool|votes|reward|skill)\.[a-z_.]+)`", TEXT))))
def test_every_key_exists(key: str) -> None:
    known = recipe("qwen3-4b-base-r-diverse")
    assert key in known or any(name.startswith(key + ".") for name in known)


def test_the_terms_keys_exist() -> None:
    table = TEXT[TEXT.index("| term |") : TEXT.index("`floor_at_zero` raises")]
    names = {name for name in re.findall(r"`([a-z_]+)`", table) if name not in ("min", "tent", "reward.")}
    assert names <= set(to_tree(ChallengerRewardConfig()))


def test_every_number_of_the_report_exists() -> None:
    pytest.importorskip("sklearn", reason="needs the extra self-play")
    row = measure_diversity(*questions()).rows[3]
    names = set(re.findall(r"`((?:recurrence|skill|surface|pairs)/[a-z_]+)`", TEXT))
    assert len(names) > 8 and names <= set(row)


def test_its_numbers_are_the_codes() -> None:
    limits = Limits()
    for words in (
        f"cosine ≥ {limits.near:g}",
        f"{limits.clustered:,} questions of one iteration",
        f"{limits.together:,} of all together",
        f"{limits.compared} for whatever compares words",
        f"rises by {CHANGE:g} or more",
        f"at least {FEWEST_PAIRS} pairs",
    ):
        assert words in TEXT
    assert MOST == 0.5


def test_the_files_have_these_names() -> None:
    for name in (QUESTIONS, ITERATIONS, MEMORY, SKILLS, CONFIG, STATE):
        assert f"{name}`" in TEXT or f"{name}/`" in TEXT


def test_its_pictures_are_there() -> None:
    for name in re.findall(r"\]\((images/[^)]+)\)", TEXT):
        assert (Path(__file__).resolve().parents[2] / "docs" / name).is_file()
