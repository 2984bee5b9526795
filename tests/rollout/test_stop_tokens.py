"""End-of-sequence ids from every place where a model folder may name them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.stop_tokens import stop_tokens


def folder_with(path: Path, **files: Any) -> Path:
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def tokenizer(eos: int | None) -> SimpleNamespace:
    return SimpleNamespace(eos_token_id=eos)


def test_all_places_count(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, generation_config={"eos_token_id": [7, 3]}, config={"eos_token_id": 5})
    assert stop_tokens(folder, tokenizer(9)) == (3, 5, 7, 9)


@pytest.mark.parametrize(
    ("files", "eos", "expected"),
    [
        ({}, 4, (4,)),
        ({"config": {"eos_token_id": None}}, 4, (4,)),
        ({"config": {"eos_token_id": 0}}, None, (0,)),
        ({"generation_config": {"eos_token_id": 4}}, 4, (4,)),
    ],
)
def test_one_place_is_enough(tmp_path: Path, files: dict[str, Any], eos: int | None, expected: tuple) -> None:
    assert stop_tokens(folder_with(tmp_path, **files), tokenizer(eos)) == expected


def test_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="names no end-of-sequence token; add eos_token_id"):
        stop_tokens(folder_with(tmp_path, config={}), tokenizer(None))


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(EngineError, match=r"generation_config\.json is not a JSON object"):
        stop_tokens(folder_with(tmp_path, generation_config=content), tokenizer(1))
