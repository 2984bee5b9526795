"""Hugging Face -> Megatron -> Hugging Face at changing layouts: bit-identical tensors, named errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from megatron_srpo.errors import UserError
from megatron_srpo.weights.hf_files import INDEX_FILE, SINGLE_FILE
from tests.model.tiny import EXPERTS, random_qwen3, reference_logits, write_random_qwen3
from tests.ranks import run_ranks


def _groups(tp: int, pp: int, ep: int = 1) -> Any:
    from megatron_srpo.model.parallel import initialize_parallel

    return initialize_parallel(tp, pp, expert=ep)


def run_import(
    rank: int, world: int, source: Path, target: Path, tp: int, pp: int, ep: int = 1
) -> tuple[Any, list]:
    from megatron_srpo.weights.convert import import_hf

    shown: list[tuple[str, int, int]] = []
    memory = import_hf(source, target, _groups(tp, pp, ep), lambda *progress: shown.append(progress))
    return memory, shown


def run_export(
    rank: int, world: int, source: Path, target: Path, tp: int, pp: int, options: dict[str, Any], ep: int = 1
) -> tuple[Any, list]:
    from megatron_srpo.weights.convert import export_hf

    shown: list[tuple[str, int, int]] = []
    groups = _groups(tp, pp, ep)
    memory = export_hf(source, target, groups, progress=lambda *p: shown.append(p), **options)
    return memory, shown


def run_verify(
    rank: int, world: int, checkpoint: Path, folder: Path, tp: int, pp: int, ep: int = 1
) -> float | str:
    from megatron_srpo.weights.convert import verify

    try:
        return verify(checkpoint, folder, _groups(tp, pp, ep))
    except UserError as error:
        return str(error)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def _identical(first: Path, second: Path) -> bool:
    a, b = _tensors(first), _tensors(second)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("there", "back", "tied", "dtype"),
    [
        ((1, 1), (2, 2), False, torch.float32),
        ((2, 1), (1, 2), True, torch.bfloat16),
        ((2, 2), (1, 1), True, torch.float32),
        ((1, 2), (2, 1), False, torch.float16),
    ],
    ids=["1x1-2x2-fp32", "2x1-1x2-tied-bf16", "2x2-1x1-tied-fp32", "1x2-2x1-fp16"],
)
def test_round_trip_is_bit_identical(tmp_path, there, back, tied, dtype):
    # 300 tokens: padded to 384 rows with TP 1 and 512 with TP 2, so that padding differs on the way
    model = random_qwen3(vocab_size=300, tie_word_embeddings=tied).to(dtype)
    source, checkpoint, target = tmp_path / "source", tmp_path / "checkpoint", tmp_path / "target"
    model.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    run_ranks(there[0] * there[1], run_import, source, checkpoint, *there)
    run_ranks(back[0] * back[1], run_export, checkpoint, target, *back, {})
    assert _identical(source, target)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    info = json.loads((checkpoint / "checkpoint.json").read_text())
    assert info["dtype"] == str(dtype).removeprefix("torch.")
    assert info["architecture"]["vocab_size"] == 300
    assert info["written_by"]["tensor_parallel"] == there[0]


@pytest.mark.parametrize(
    ("there", "back", "dtype", "dense_layers"),
    [
        ((1, 1, 1), (1, 1, 4), torch.bfloat16, []),
        ((1, 1, 4), (2, 2, 2), torch.float32, []),
        ((2, 2, 2), (2, 1, 1), torch.float32, [1]),
        ((2, 1, 4), (1, 2, 2), torch.bfloat16, [0]),
    ],
    ids=["ep1-ep4", "ep4-2x2x2", "2x2x2-tp2", "tp2ep4-pp2ep2"],
)
def test_round_trip_of_experts_is_bit_identical(tmp_path, there, back, dtype, dense_layers):
    changes = {"vocab_size": 300, "mlp_only_layers": dense_layers}
    model = random_qwen3(**{**EXPERTS, **changes}).to(dtype)
    source, checkpoint, target = tmp_path / "source", tmp_path / "checkpoint", tmp_path / "target"
    model.save_pretrained(source)
    run_ranks(_ranks(*there), run_import, source, checkpoint, *there)
    tp, pp, ep = back
    run_ranks(_ranks(*back), run_export, checkpoint, target, tp, pp, {}, ep)
    assert _identical(source, target)
    assert len(_tensors(target)) == 3 + 2 * 8 + (2 - len(dense_layers)) * 13 + len(dense_layers) * 3
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
    info = json.loads((checkpoint / "checkpoint.json").read_text())
    assert info["written_by"]["expert_parallel"] == there[2]
    differences = run_ranks(_ranks(*back), run_verify, checkpoint, target, *back)
    # fp32 logits on both sides, whatever the stored type
    assert all(isinstance(found, float) and found < 1e-5 for found in differences)


def _ranks(tp: int, pp: int, ep: int) -> int:
    return max(tp, ep) * pp


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face folder in several files and its checkpoint."""
    root = tmp_path_factory.mktemp("converted")
    source = write_random_qwen3(root / "source", max_shard_size="20KB")
    results = run_ranks(2, run_import, source, root / "checkpoint", 2, 1)
    for memory, shown in results:
        assert shown[:2] == [("reading", 1, 19), ("reading", 2, 19)]
        assert shown[-2:] == [("writing", 0, 1), ("writing", 1, 1)]
        assert memory.shard > 0 and memory.rise >= 0
    return source, root / "checkpoint"


def test_sharded_sources_and_targets(converted, tmp_path):
    source, checkpoint = converted
    ((_, shown),) = run_ranks(1, run_export, checkpoint, tmp_path / "hf", 1, 1, {"max_file_bytes": 30_000})
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    assert (tmp_path / "hf" / INDEX_FILE).is_file()
    assert _identical(source, tmp_path / "hf")
    assert shown[-1] == ("writing", 25, 25)
    # AutoModelForCausalLM loads it, and it computes the same
    sequences = [[1, 2, 3, 4], [95]]
    for got, expected in zip(
        reference_logits(tmp_path / "hf", sequences), reference_logits(source, sequences), strict=True
    ):
        assert_close(got, expected)  # the same sums, of tensors that lie at other addresses


def test_verify_accepts_the_same_model_and_refuses_another(converted, tmp_path):
    source, checkpoint = converted
    for difference in run_ranks(2, run_verify, checkpoint, source, 1, 2):
        assert isinstance(difference, float) and difference < 1e-5
    changed = tmp_path / "changed"
    random_qwen3().save_pretrained(changed)
    tensors = load_file(changed / SINGLE_FILE)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.5
    save_file(tensors, changed / SINGLE_FILE, metadata={"format": "pt"})
    for message in run_ranks(2, run_verify, checkpoint, changed, 2, 1):
        assert isinstance(message, str) and "do not hold the same model" in message


def test_a_training_runs_checkpoint_is_read_with_the_base_models_files(converted, tmp_path):
    source, checkpoint = converted
    run = tmp_path / "step_00000020"
    shutil.copytree(checkpoint / "weights", run)  # Megatron-Core's files, no config beside them
    run_ranks(1, run_export, run, tmp_path / "hf", 1, 1, {"hf_files": source})
    assert _identical(source, tmp_path / "hf")


def export_error(rank: int, world: int, source: Path, target: Path, hf_files: Path | None) -> str:
    from megatron_srpo.weights.convert import export_hf

    try:
        export_hf(source, target, _groups(1, world), hf_files)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def import_error(rank: int, world: int, source: Path, target: Path) -> str:
    from megatron_srpo.weights.convert import import_hf

    try:
        import_hf(source, target, _groups(world, 1))
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _export_error(source: Path, target: Path, hf_files: Path | None = None) -> str:
    return run_ranks(1, export_error, source, target, hf_files)[0]


def test_export_errors_name_what_is_wrong(converted, tmp_path):
    source, checkpoint = converted
    out = tmp_path / "out"
    assert "ModelError" in _export_error(tmp_path / "absent", out)
    assert "CheckpointError" in (text := _export_error(source, out)) and "no finished Megatron" in text
    (tmp_path / "exists").mkdir()
    assert "exists; remove it" in _export_error(checkpoint, tmp_path / "exists")
    other = write_random_qwen3(tmp_path / "other", rms_norm_eps=1e-3)
    assert "says rms_norm_eps = 1e-06, config.json gives 0.001" in _export_error(checkpoint, out, other)
    larger = write_random_qwen3(tmp_path / "larger", vocab_size=1000)
    assert "vocabulary rows, config.json asks for 1000" in _export_error(checkpoint, out, larger)
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint / "weights", bare)
    deeper = write_random_qwen3(tmp_path / "deeper", num_hidden_layers=3)
    assert "is damaged or belongs to another model" in _export_error(bare, out, deeper)
    assert not out.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json is damaged"),
        (
            lambda folder: (folder / "checkpoint.json").write_text('{"format": 9, "architecture": {}}'),
            "format 9",
        ),
        (lambda folder: (folder / "weights" / ".metadata").write_bytes(b"x"), "weights is damaged"),
        (lambda folder: (folder / "weights" / "metadata.json").unlink(), "no finished Megatron checkpoint"),
        (lambda folder: _truncate(folder / "weights"), "is damaged or belongs to another model"),
    ],
    ids=["info", "format", "index", "unfinished", "truncated"],
)
def test_a_damaged_checkpoint_is_named(converted, tmp_path, damage, message):
    shutil.copytree(converted[1], tmp_path / "copy")
    damage(tmp_path / "copy")
    assert message in _export_error(tmp_path / "copy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _truncate(weights: Path) -> None:
    for file in weights.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000])


def test_import_errors_name_what_is_wrong(converted, tmp_path):
    source, _ = converted
    (tmp_path / "exists").mkdir()
    assert "exists; remove it" in run_ranks(1, import_error, source, tmp_path / "exists")[0]
    mixed = tmp_path / "mixed"
    random_qwen3().save_pretrained(mixed)
    tensors = load_file(mixed / SINGLE_FILE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, mixed / SINGLE_FILE)
    assert "mixes data types" in run_ranks(1, import_error, mixed, tmp_path / "out")[0]
    odd = write_random_qwen3(tmp_path / "odd", num_key_value_heads=1)
    assert "ConfigError" in run_ranks(2, import_error, odd, tmp_path / "out")[0]
    assert not (tmp_path / "out").exists()
