"""Loading: the right numbers, from no more bytes than a rank owns, and errors that name the tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_srpo.errors import WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.hf_files import SINGLE_FILE, SliceReader
from megatron_srpo.weights.table import Box, places, rank_table
from tests.model.tiny import EXPERTS, stored_tensors, write_random_qwen3
from tests.ranks import run_ranks
from tests.weights.reference import shard


def loaded(
    rank: int, world: int, folder: str, tp: int, pp: int, dtype: torch.dtype = torch.float32, ep: int = 1
) -> dict[str, Any]:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf

    groups = initialize_parallel(tp, pp, expert=ep)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, dtype, vocab_multiple=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))  # whatever loading leaves out stays visible
    progress: list[tuple[int, int]] = []
    read = 0
    original = SliceReader.read

    def counting(self: SliceReader, name: str, box: Box) -> torch.Tensor:
        nonlocal read
        read += box.size
        return original(self, name, box)

    SliceReader.read = counting
    try:
        load_hf(model, arch, folder, groups, lambda done, total: progress.append((done, total)))
    finally:
        SliceReader.read = original
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"parameters": parameters, "read": read, "progress": progress}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_shards_hold_the_right_numbers_and_nothing_else_is_read(tmp_path, tp, pp, tied):
    # 100 tokens padded to 112 or 128 rows
    folder = write_random_qwen3(tmp_path, vocab_size=100, tie_word_embeddings=tied, max_shard_size="30KB")
    _check_shards(folder, tp, pp)


@pytest.mark.parametrize(("tp", "pp", "ep"), [(1, 1, 1), (2, 1, 1), (2, 1, 2), (1, 2, 2), (2, 1, 4)])
def test_ranks_read_their_experts_and_no_others(tmp_path, tp, pp, ep):
    folder = write_random_qwen3(tmp_path, vocab_size=100, max_shard_size="30KB", **EXPERTS)
    _check_shards(folder, tp, pp, ep)


def _check_shards(folder: Path, tp: int, pp: int, ep: int = 1) -> None:
    arch = Qwen3Architecture.from_hf_folder(folder)
    hf = stored_tensors(folder)
    rows = arch.padded_vocab_size(tp, 16) // tp
    everyone = places(tp, PipelineStages(pp), ep)
    results = run_ranks(len(everyone), loaded, str(folder), tp, pp, torch.float32, ep)
    for place, result in zip(everyone, results, strict=True):
        table = rank_table(arch, place, rows)
        assert result["parameters"].keys() == {entry.parameter for entry in table}
        for name, parameter in result["parameters"].items():
            assert torch.equal(parameter, shard(arch, hf, name, place, rows)), name
        assert result["read"] == sum(piece.target.size for entry in table for piece in entry.pieces)
        assert result["progress"] == [(done, len(table)) for done in range(1, len(table) + 1)]


def test_values_are_converted_to_the_models_type(tmp_path):
    folder = write_random_qwen3(tmp_path)
    (narrow,) = run_ranks(1, loaded, str(folder), 1, 1, torch.bfloat16)
    (wide,) = run_ranks(1, loaded, str(folder), 1, 1, torch.float32)
    for name, value in narrow["parameters"].items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, wide["parameters"][name].bfloat16())


def _with_head(folder: Path, head: torch.Tensor) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    save_file({**tensors, "lm_head.weight": head}, folder / SINGLE_FILE)


def test_a_tied_models_superfluous_head_must_equal_the_embedding(tmp_path):
    folder = write_random_qwen3(tmp_path, tie_word_embeddings=True)
    embedding = load_file(folder / SINGLE_FILE)["model.embed_tokens.weight"]
    _with_head(folder, embedding.clone())
    (result,) = run_ranks(1, loaded, str(folder), 1, 1)
    assert torch.equal(result["parameters"]["embedding.word_embeddings.weight"][:96], embedding)
    _with_head(folder, embedding + 1)
    assert "lm_head.weight" in run_ranks(1, load_error, str(folder), str(folder))[0]


def load_error(rank: int, world: int, config_folder: str, weights_folder: str) -> str:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf

    groups = initialize_parallel(1, 1)
    model = build_policy(Qwen3Architecture.from_hf_folder(config_folder), groups)
    try:
        load_hf(model, Qwen3Architecture.from_hf_folder(weights_folder), weights_folder, groups)
    except WeightError as error:
        return str(error)
    return "accepted"


def test_a_model_of_another_architecture_is_refused(tmp_path):
    base = str(write_random_qwen3(tmp_path / "base"))
    wider = str(write_random_qwen3(tmp_path / "wider", intermediate_size=64))
    deeper = str(write_random_qwen3(tmp_path / "deeper", num_hidden_layers=3))
    assert (
        "linear_fc1.weight has shape (96, 32) in the model, (128, 32)"
        in run_ranks(1, load_error, base, wider)[0]
    )
    assert "disagree about the parameters decoder.layers.2." in run_ranks(1, load_error, base, deeper)[0]


def test_a_damaged_folder_is_refused_before_anything_is_filled(tmp_path):
    folder = write_random_qwen3(tmp_path)
    content = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(content[:-100])
    assert "truncated" in run_ranks(1, load_error, str(folder), str(folder))[0]
