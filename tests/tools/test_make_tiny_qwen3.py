"""The script's command line, and the model that the repository carries."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_srpo.errors import ModelError
from tools import make_tiny_qwen3 as script
from tools.tiny_qwen3 import card, corpus, tokenizer
from tools.tiny_qwen3.families import FAMILIES
from tools.tiny_qwen3.measure import SAMPLES, Study, measure
from tools.tiny_qwen3.warm_up import WarmUp

CARRIED = Path(__file__).parents[2] / "examples" / "models" / "qwen3-tiny"
MEGABYTE = 2**20


@dataclass(frozen=True)
class FewExamples(WarmUp):
    """A warm-up of seconds."""

    batch: int = 4
    items: int = 60


@pytest.fixture(scope="module")
def carried_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CARRIED)


@pytest.fixture(scope="module")
def carried_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(CARRIED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def study(carried_model: Any, carried_tokenizer: Any) -> Study:
    return Study(carried_model, carried_tokenizer)


@pytest.fixture(scope="module")
def recorded() -> card.Table:
    table: card.Table = json.loads((CARRIED / "measurements.json").read_text())
    return table


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    found = re.search(r"```json\n(.*?)\n```", (CARRIED / "README.md").read_text(), re.DOTALL)
    assert found is not None
    values: dict[str, Any] = json.loads(found[1])
    return values


def test_folder_is_complete_small_and_readable() -> None:
    names = {path.name for path in CARRIED.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) < 8 * MEGABYTE
    assert (CARRIED / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_it_is_a_qwen3_of_the_promised_size(carried_model: Any) -> None:
    assert type(carried_model).__name__ == "Qwen3ForCausalLM"
    assert 500_000 < sum(p.numel() for p in carried_model.parameters()) < 5_000_000
    assert {"q_norm", "k_norm"} <= {name.split(".")[-2] for name, _ in carried_model.named_parameters()}
    config = carried_model.config
    assert config.num_hidden_layers % 2 == 0
    assert config.vocab_size % 4 == config.num_attention_heads % 4 == config.num_key_value_heads % 4 == 0


def test_special_tokens_are_qwens(carried_model: Any, carried_tokenizer: Any) -> None:
    assert carried_tokenizer.eos_token == "<|im_end|>"
    assert carried_tokenizer.pad_token == "<|endoftext|>"
    for token in ("<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_response>", "<|fim_prefix|>"):
        (index,) = carried_tokenizer(token)["input_ids"]
        assert carried_tokenizer.convert_ids_to_tokens(index) == token
    assert carried_model.config.eos_token_id == carried_tokenizer.eos_token_id
    assert carried_model.generation_config.pad_token_id == carried_tokenizer.pad_token_id
    assert len(carried_tokenizer) <= carried_model.config.vocab_size


@pytest.mark.parametrize(("thinking", "end"), [(False, "<think>\n\n</think>\n\n"), (True, "")])
def test_chat_template_has_the_thinking_switch(carried_tokenizer: Any, thinking: bool, end: str) -> None:
    text = carried_tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
        + end
    )


def test_prompts_of_the_families_need_no_byte_tokens(carried_tokenizer: Any) -> None:
    """Each word of the questions is whole: prompts stay short, as with the full vocabulary."""
    for problem in corpus.held_out(20):
        tokens = carried_tokenizer(problem.question)["input_ids"]
        words = len(re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", problem.question))
        assert len(tokens) <= 1.4 * words, (
            problem.question
        )  # line ends, plurals and rare animals cost a little


def test_recorded_numbers_leave_room_to_learn(recorded: card.Table) -> None:
    assert set(recorded) == {*(family.name for family in FAMILIES), "all"}
    for name, numbers in recorded.items():
        assert 0.1 < numbers["pass@1"] < 0.75, name
        assert numbers["mixed groups"] > 0.3, name
        assert numbers["truncated"] < 0.05, name
    assert recorded["all"]["mixed groups"] > 0.5


def test_recorded_numbers_show_a_teacher_that_knows_more_and_stays_consistent(recorded: card.Table) -> None:
    numbers = recorded["all"]
    assert numbers["teacher accuracy"] > numbers["student accuracy on the same problems"] + 0.15
    assert numbers["log-prob gain of the right token"] > 0.5
    assert numbers["agreement after a wrong prefix"] > 0.9
    assert numbers["divergence after a wrong prefix"] < numbers["divergence at the first wrong token"] / 4


def test_carried_weights_are_the_measured_ones(study: Study, recorded: card.Table) -> None:
    """A quarter of the problems anew, with other samples.

    128 groups or fewer: the standard error of a mean of per-problem pass rates (standard deviation below
    0.45) is at most 0.06 here; four of them.
    """
    problems = corpus.held_out(16)
    groups = study.sample(problems, [problem.question for problem in problems], 4, 1.0)
    found = sum(sum(group.correct) for group in groups) / (4 * len(groups))
    assert found == pytest.approx(recorded["all"]["pass@1"], abs=0.24)
    taught = [group for group in groups if any(group.correct)]
    texts = [study.demonstration_text(group) for group in taught]
    again = study.sample([group.problem for group in taught], texts, 1, 1.0)
    accuracy = sum(group.correct[0] for group in again) / len(again)
    assert accuracy == pytest.approx(recorded["all"]["teacher accuracy"], abs=0.24)


def test_card_shows_the_recorded_table(recorded: card.Table) -> None:
    assert card.measurement_table(recorded) in (CARRIED / "README.md").read_text()
    assert recorded["all"]["problems"] == len(corpus.held_out())
    assert f"pass@{SAMPLES}" in recorded["all"]


def test_recipe_of_the_card_is_that_of_the_script(recipe: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(WarmUp().__dict__))
    assert recipe["warm-up"] == settings


def test_recorded_questions_can_be_made_again(recipe: dict[str, Any]) -> None:
    """Holds as long as reasoning-gym generates the same items for the same seeds."""
    settings = WarmUp(**recipe["warm-up"])
    pools = corpus.training_problems(settings.items, settings.data_seed)
    assert corpus.digest(pools) == recipe["questions sha256"]


def test_command_line_defaults_to_the_carried_folder() -> None:
    options = script.arguments([])
    assert (CARRIED.parents[2] / options.output).resolve() == CARRIED.resolve()
    assert options.tokenizer is None
    assert options.steps == WarmUp.steps


def test_measure_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], study: Study
) -> None:
    problems = corpus.held_out(2)
    monkeypatch.setattr(script.corpus, "held_out", lambda: problems)
    script.main(["--measure", str(CARRIED)])
    assert capsys.readouterr().out.strip() == card.measurement_table(measure(study, problems))


def test_a_wrong_tokenizer_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is missing"):
        script.main(["--output", str(tmp_path / "model"), "--tokenizer", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_very_short_run_writes_a_loadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script but the download: two steps, few problems, a tokenizer trimmed again."""
    problems = corpus.held_out(1)
    monkeypatch.setattr(script.corpus, "held_out", lambda: problems)
    monkeypatch.setattr(script, "WarmUp", FewExamples)
    monkeypatch.setattr(tokenizer, "verify", lambda folder: None)
    script.main(["--output", str(tmp_path / "model"), "--tokenizer", str(CARRIED), "--steps", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    trimmed = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(trimmed) <= loaded.config.vocab_size < 704
    question = random.Random(0).choice(problems).question
    assert trimmed.decode(trimmed(question)["input_ids"]) == question
    assert json.loads((tmp_path / "model" / "measurements.json").read_text())["all"]["problems"] == len(
        problems
    )
    assert "2 steps of 4" in " ".join((tmp_path / "model" / "README.md").read_text().split())
