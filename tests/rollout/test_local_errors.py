"""What the local engine refuses, with the names in its messages."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.types import Request, SamplingParams
from tests.rollout.models import make_requests, write_model

PARAMS = SamplingParams(1.0, 1.0, 12)


def test_a_prompt_too_long_names_the_limits(model_folder: Path) -> None:
    request = Request("long one", tuple([1] * 501), 0)
    with pytest.raises(EngineError, match=r"'long one': 501 prompt \+ 12 new tokens exceed the model's 512"):
        LocalEngine(model_folder).generate([request], PARAMS)


def test_a_prompt_that_just_fits_is_served(model_folder: Path) -> None:
    completion = LocalEngine(model_folder, stop_tokens=()).generate([Request("x", (1,) * 500, 0)], PARAMS)[0]
    assert len(completion.tokens) == 12


def test_an_empty_prompt(model_folder: Path) -> None:
    with pytest.raises(EngineError, match="'void' has an empty prompt"):
        LocalEngine(model_folder).generate([Request("void", (), 0)], PARAMS)


@pytest.mark.parametrize("token", [-1, 96])
def test_a_token_outside_the_vocabulary(model_folder: Path, token: int) -> None:
    with pytest.raises(EngineError, match=rf"'x' holds token ids .*{token}.*0 to 95"):
        LocalEngine(model_folder).generate([Request("x", (3, token), 0)], PARAMS)


def test_a_closed_engine(model_folder: Path) -> None:
    engine = LocalEngine(model_folder)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(make_requests(), PARAMS)
    with pytest.raises(EngineError, match="closed"):
        engine.update_weights(iter(()), 1)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no config\.json"):
        LocalEngine(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="cannot load the model"):
        LocalEngine(tmp_path)


def test_a_truncated_file(tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EngineError, match="cannot load the model"):
        LocalEngine(tmp_path)


def test_a_folder_that_lacks_a_tensor(tmp_path: Path) -> None:
    write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"missing_keys.*model\.layers\.1\.mlp\.up_proj\.weight"):
        LocalEngine(tmp_path)


def test_a_folder_whose_tensors_have_another_shape(tmp_path: Path) -> None:
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(EngineError, match=r"mismatched_keys.*model\.layers\.0\.mlp\.down_proj\.weight"):
        LocalEngine(tmp_path)


def test_a_model_without_an_end_token(tmp_path: Path) -> None:
    write_model(tmp_path, eos_token_id=None)
    with pytest.raises(EngineError, match=r"no eos_token_id.*stop_tokens"):
        LocalEngine(tmp_path)


def test_batch_size_zero(model_folder: Path) -> None:
    with pytest.raises(EngineError, match="batch_size = 0"):
        LocalEngine(model_folder, batch_size=0)


@pytest.mark.parametrize("limit", [0, 97])
def test_vocabulary_limit_out_of_range(model_folder: Path, limit: int) -> None:
    with pytest.raises(EngineError, match=f"vocab_limit = {limit}; give 1 to 96"):
        LocalEngine(model_folder, vocab_limit=limit)


def test_a_stop_token_that_cannot_be_sampled(model_folder: Path) -> None:
    with pytest.raises(EngineError, match=r"stop tokens \(7,\) are not all among the 5"):
        LocalEngine(model_folder, vocab_limit=5)
