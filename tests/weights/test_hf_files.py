"""Safetensors folders: what is refused, how files are planned, and bytes that the library reads back."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_srpo.errors import WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.weights.hf_files import (
    DTYPE_NAMES,
    INDEX_FILE,
    SINGLE_FILE,
    HfFolder,
    open_hf,
    plan_files,
    write_files,
)
from megatron_srpo.weights.table import Box
from tests.model.tiny import write_random_qwen3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_qwen3(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tensors(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / SINGLE_FILE)


def _folder(model: Path, target: Path, tensors: dict[str, torch.Tensor]) -> tuple[Qwen3Architecture, Path]:
    """Write ``tensors`` beside the model's config."""
    save_file(tensors, target / SINGLE_FILE)
    return Qwen3Architecture.from_hf_folder(model), target


def _split(target: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Write two files without an index; return the map that belongs in it."""
    names = list(tensors)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, target / file)
    return {name: file for file, part in halves.items() for name in part}


def test_opens_what_transformers_writes(model, tmp_path):
    open_hf(Qwen3Architecture.from_hf_folder(model), model)
    sharded = write_random_qwen3(tmp_path, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    open_hf(Qwen3Architecture.from_hf_folder(sharded), sharded)


def test_reads_boxes(model, tensors):
    stored = HfFolder(model)
    with stored.reader() as reader:
        for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"):
            got = reader.read(name, Box((3, 5), (9, 20)))
            assert torch.equal(got, tensors[name][3:9, 5:20])
        assert torch.equal(
            reader.read("model.norm.weight", Box((4,), (8,))), tensors["model.norm.weight"][4:8]
        )


def test_names_a_missing_tensor(model, tensors, tmp_path):
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        open_hf(*_folder(model, tmp_path, tensors))


def test_names_an_extra_tensor(model, tensors, tmp_path):
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(3)
    with pytest.raises(WeightError, match=r"q_proj\.bias in .*model\.safetensors is not part of the model"):
        open_hf(*_folder(model, tmp_path, tensors))


def test_names_a_tensor_of_wrong_shape(model, tensors, tmp_path):
    tensors["model.norm.weight"] = torch.zeros(33)
    with pytest.raises(WeightError, match=r"model\.norm\.weight .* has shape \[33\].* asks for \[32\]"):
        open_hf(*_folder(model, tmp_path, tensors))


def test_names_a_tensor_of_unusable_type(model, tensors, tmp_path):
    tensors["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)
    with pytest.raises(WeightError, match=r"model\.norm\.weight .* has type I8; supported: F32, BF16, F16"):
        open_hf(*_folder(model, tmp_path, tensors))


def test_a_tied_models_head_is_tolerated_in_its_right_shape_only(model, tensors, tmp_path):
    arch = Qwen3Architecture.from_hf_config(
        {**json.loads((model / "config.json").read_text()), "tie_word_embeddings": True}
    )
    save_file(tensors, tmp_path / SINGLE_FILE)
    open_hf(arch, tmp_path)
    tensors["lm_head.weight"] = torch.zeros(95, 32)
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(WeightError, match=r"lm_head\.weight .* has shape \[95, 32\]"):
        open_hf(arch, tmp_path)


@pytest.mark.parametrize("keep", [4, 200, -1])
def test_names_a_truncated_file(model, tmp_path, keep):
    content = (model / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(content[:keep])
    with pytest.raises(WeightError, match=r"model\.safetensors is truncated"):
        HfFolder(tmp_path)


def test_refuses_folders_without_safetensors(tmp_path):
    with pytest.raises(WeightError, match="does not exist"):
        HfFolder(tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightError, match="only safetensors weights are read"):
        HfFolder(tmp_path)


def test_names_a_file_that_only_the_index_knows(tensors, tmp_path):
    weight_map = _split(tmp_path, tensors)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    HfFolder(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(WeightError, match=r"names b\.safetensors, which is not in"):
        HfFolder(tmp_path)


def test_names_a_tensor_that_the_index_puts_elsewhere(tensors, tmp_path):
    weight_map = _split(tmp_path, tensors)
    weight_map["model.norm.weight"] = "a.safetensors"
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightError, match=r"model\.norm\.weight is in a\.safetensors, but it is not"):
        HfFolder(tmp_path)


def test_names_a_tensor_that_is_in_two_files(tensors, tmp_path):
    weight_map = _split(tmp_path, tensors)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(WeightError, match=r"is in both a\.safetensors and b\.safetensors"):
        HfFolder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_refuses_a_broken_index(tmp_path, content):
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(WeightError, match="is not a safetensors index"):
        HfFolder(tmp_path)


@pytest.mark.parametrize("file", ["../a.safetensors", "/a.safetensors", 7])
def test_refuses_an_index_that_points_out_of_the_folder(tmp_path, file):
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(WeightError, match="is not a file of this folder"):
        HfFolder(tmp_path)


def test_common_dtype(model, tensors, tmp_path):
    assert HfFolder(model).common_dtype(tensors) == torch.float32
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(WeightError, match=r"mixes data types .*model\.norm\.weight is BF16"):
        HfFolder(tmp_path).common_dtype(tensors)


SHAPES = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple),
    min_size=1,
)


@given(shapes=SHAPES, limit=st.integers(1, 200))
def test_plans_keep_the_order_and_the_limit(shapes, limit):
    plans = plan_files(shapes, torch.float32, limit)
    assert [name for plan in plans for name in plan.tensors] == list(shapes)
    for plan in plans:
        size = sum(4 * torch.Size(shapes[name]).numel() for name in plan.tensors)
        assert size <= limit or len(plan.tensors) == 1
    assert (len(plans) == 1) == (plans[0].name == SINGLE_FILE)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("limit", [10**9, 3000])
def test_written_files_are_read_back_by_the_library(tensors, tmp_path, dtype, limit):
    expected = {name: value.to(dtype) for name, value in tensors.items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    # columns of a larger tensor: what is written must not assume contiguous memory
    stream = (
        (name, value.mT.contiguous().mT if value.dim() == 2 else value) for name, value in expected.items()
    )
    write_files(tmp_path, stream, shapes, dtype, limit)
    assert (tmp_path / INDEX_FILE).exists() == (limit == 3000)
    got = {name: value for file in tmp_path.glob("*.safetensors") for name, value in load_file(file).items()}
    assert got.keys() == expected.keys()
    assert all(got[name].dtype == dtype and torch.equal(got[name], expected[name]) for name in expected)
    if limit == 3000:
        index = json.loads((tmp_path / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
        assert set(index["weight_map"]) == set(expected)
        HfFolder(tmp_path)


def test_tensors_out_of_order_are_a_defect(tensors, tmp_path):
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    stream = iter(reversed(tensors.items()))
    with pytest.raises(AssertionError):
        write_files(tmp_path, stream, shapes, torch.float32, 10**9)
