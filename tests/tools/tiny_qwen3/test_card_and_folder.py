"""The model folder and its card."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tools.tiny_qwen3 import card, model_folder
from tools.tiny_qwen3.families import FAMILIES
from tools.tiny_qwen3.warm_up import build_model

TABLE = {
    "gcd": {"problems": 64.0, "pass@1": 0.25, "failures": 1.0},
    "all": {"problems": 128.0, "pass@1": 0.375, "teacher accuracy": 0.9},
}
RECIPE = {
    "warm-up": {
        "steps": 10,
        "batch": 4,
        "kinds": (0.7, 0.1, 0.2),
        "opening": 0.4,
        "opening_kinds": (0.5, 0.3, 0.2),
    },
    "report": {"tokens": 12345, "cpu_seconds": 6.7, "final_loss": 0.1234},
}


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build_model(tokenizer, 3)


def test_written_model_loads_with_the_same_weights(model: Any, tmp_path: Path) -> None:
    model_folder.write_model(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    assert loaded.config.rope_parameters["rope_theta"] == model.config.rope_parameters["rope_theta"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_tied_embedding_is_stored_once(model: Any, tmp_path: Path) -> None:
    model_folder.write_model(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(model.state_dict()) - {"lm_head.weight"}


def test_config_has_the_names_of_the_published_models(model: Any) -> None:
    config = model_folder.published_config(model)
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["rope_theta"] == 10000.0
    assert config["torch_dtype"] == "float32"
    assert "rope_parameters" not in config
    json.dumps(config)


def test_generation_config_stops_at_the_end_of_the_turn(model: Any, tokenizer: Any) -> None:
    config = model_folder.generation_config(model)
    assert config["eos_token_id"][0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert config["temperature"] == 1.0


def test_publish_replaces_an_older_folder(tmp_path: Path) -> None:
    for name, content in (("new", "2"), ("model", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "model" / "stale").write_text("")
    model_folder.publish(tmp_path / "new", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "2"
    assert not (tmp_path / "model" / "stale").exists()


def test_publish_to_a_new_place(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    model_folder.publish(tmp_path / "new", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_card_says_how_the_model_was_made(model: Any) -> None:
    text = card.render(model, 664, RECIPE, TABLE)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "12,345 tokens, 7 CPU-seconds" in text
    flat = " ".join(text.split())
    assert "student 0.5, teacher 0.3, recovery 0.2 in the first 40 % of the steps" in flat
    assert "then student 0.7, teacher 0.1, recovery 0.2." in flat
    assert "python -m tools.make_tiny_qwen3" in text
    for family in FAMILIES:
        assert f"`{family.name}` {json.dumps(family.config)}" in text


def test_measurement_table_has_a_row_per_number_and_a_column_per_family() -> None:
    lines = card.measurement_table(TABLE).split("\n")
    assert lines[0] == "| | gcd | all |"
    assert lines[2] == "| problems | 64 | 128 |"
    assert lines[3] == "| pass@1 | 0.250 | 0.375 |"
    assert lines[-1] == "| teacher accuracy | - | 0.900 |"
