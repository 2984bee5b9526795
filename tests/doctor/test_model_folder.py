"""Findings about a model folder: a good one passes, and every kind of damage is named with a remedy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.doctor.model_folder import check_model_folder
from megatron_srpo.doctor.types import Check
from tests.data.tokenizer import byte_tokenizer
from tests.model.tiny import write_random_qwen3


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 whose vocabulary just holds the byte tokenizer (259 tokens in 264 rows)."""
    folder = write_random_qwen3(tmp_path_factory.mktemp("model"), vocab_size=264, max_shard_size="40KB")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", eos_token_id=tokenizer.eos_token_id)
    return folder


@pytest.fixture
def folder(good_folder: Path, tmp_path: Path) -> Path:
    """A copy of the good folder that a test may damage."""
    return Path(shutil.copytree(good_folder, tmp_path / "model"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def finding(folder: Path, name: str) -> Check:
    (check,) = [check for check in check_model_folder(folder) if check.name == name]
    return check


def assert_fails(check: Check, *phrases: str) -> None:
    assert check.status == "fail"
    assert check.remedy
    for phrase in phrases:
        assert phrase in check.detail


def test_a_good_folder_passes(good_folder: Path) -> None:
    checks = check_model_folder(good_folder)
    assert [(check.name, check.status) for check in checks] == [
        ("model", "ok"),
        ("weights", "ok"),
        ("tokenizer", "ok"),
        ("chat template", "ok"),
    ]
    details = {check.name: check.detail for check in checks}
    assert "2 layers x 32" in details["model"] and "264" in details["model"]
    assert "shards" in details["weights"]
    assert details["tokenizer"].startswith("259 tokens in 264 rows")
    assert "assistant" in details["chat template"]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    (check,) = check_model_folder(tmp_path / "nowhere")
    assert_fails(check, "nowhere")


def test_another_architecture_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llama")
    (check,) = check_model_folder(folder)
    assert_fails(check, "llama")


def test_a_missing_shard_is_named(folder: Path) -> None:
    first = sorted(folder.glob("model-*.safetensors"))[0]
    first.unlink()
    assert_fails(finding(folder, "weights"), first.name)


def test_a_single_weight_file_is_enough(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").touch()
    assert finding(folder, "weights").status == "ok"


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    assert_fails(finding(folder, "weights"), "no model.safetensors")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index(content: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    assert_fails(finding(folder, "weights"), "damaged")


def test_no_tokenizer(folder: Path) -> None:
    """transformers would invent an almost empty tokenizer here."""
    (folder / "tokenizer.json").unlink()
    assert_fails(finding(folder, "tokenizer"), "no tokenizer.json")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"version": "1.0", "added_tokens": [], "model": {"type": "none"}}'],
    ids=["truncated", "not an object", "unknown model"],
)
def test_a_damaged_tokenizer(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert_fails(finding(folder, "tokenizer"), "cannot be loaded")


def test_a_tokenizer_larger_than_the_vocabulary(folder: Path) -> None:
    """259 tokens: ids 0 to 258. With 258 rows the last id has no embedding; with 259 it has."""
    edit_json(folder / "config.json", vocab_size=258)
    assert_fails(finding(folder, "tokenizer"), "258", "rows")
    edit_json(folder / "config.json", vocab_size=259)
    assert finding(folder, "tokenizer").status == "ok"


def test_no_end_token(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert_fails(finding(folder, "tokenizer"), "end-of-sequence")


def test_end_tokens_that_disagree_are_a_warning(folder: Path) -> None:
    edit_json(folder / "config.json", eos_token_id=[7, 8])
    check = finding(folder, "tokenizer")
    assert check.status == "warn"
    assert "[7, 8]" in check.detail and "eos_token_id" in check.remedy


def write_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def test_no_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert_fails(finding(folder, "chat template"), "none")


def test_a_template_that_drops_the_question(folder: Path) -> None:
    write_template(folder, "{% if add_generation_prompt %}assistant{% endif %}")
    assert_fails(finding(folder, "chat template"), "drops the question")


def test_a_template_that_opens_no_turn(folder: Path) -> None:
    write_template(folder, "{% for message in messages %}{{ message.content }}{% endfor %}")
    assert_fails(finding(folder, "chat template"), "add_generation_prompt")


def test_a_template_that_is_not_valid(folder: Path) -> None:
    write_template(folder, "{% for message in %}")
    assert_fails(finding(folder, "chat template"), "cannot be applied")
