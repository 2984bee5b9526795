"""The tool that shows a weight plan: its counts, and the errors that the command line gives."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.plan import Training
from megatron_srpo.weights.transports.collective import CollectiveTransport
from megatron_srpo.weights.transports.disk import DiskTransport
from megatron_srpo.weights.transports.tensor import TensorTransport
from tests.conftest import REPOSITORY
from tests.model.tiny import SMALL
from tools.show_weight_plan import main, make_plan, parse

MODEL = REPOSITORY / "examples" / "models" / "qwen3-tiny"
MIB = 2**20


def shown(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main([str(argument) for argument in (MODEL, *arguments)]) == 0
    return capsys.readouterr().out


def model_mib() -> float:
    """Size of the model in bfloat16, by its file."""
    return sum(tensor.numel() for tensor in load_file(MODEL / "model.safetensors").values()) * 2 / MIB


def test_counts_add_up(capsys: pytest.CaptureFixture) -> None:
    text = shown(capsys, "--tensor-parallel", 2, "--pipeline-parallel", 2, "--engine-tensor-parallel", 2)
    assert "trainer TP 2 x PP 2, engine TP 2, transport tensor, bfloat16" in text
    found = re.search(r"model ([\d.]+) MiB, delivered to each engine ([\d.]+) MiB \(([\d.]+) x\)", text)
    assert found, text
    model, delivered, ratio = map(float, found.groups())
    assert model == pytest.approx(model_mib(), abs=0.05)
    assert 1.0 <= ratio <= 1.05
    moved = [float(size) for size in re.findall(r"(?:-> rank \d|its own): ([\d.]+) MiB", text)]
    # Vocabulary padding (none: 640 rows) would be the only bytes that no rank sends; six roundings of 0.05.
    assert sum(moved) == pytest.approx(delivered, abs=0.05 * (len(moved) + 1))


def test_every_rank_that_hands_something_over_is_named(capsys: pytest.CaptureFixture) -> None:
    """Trainer TP 2, engine TP 2: each rank assembles one lane of half the model, in two buffers."""
    text = shown(capsys, "--tensor-parallel", 2, "--engine-tensor-parallel", 2)
    handed = re.findall(r"rank (\d) hands to the engine: ([\d.]+) MiB, through buckets of ([\d.]+) MiB", text)
    assert [rank for rank, *_ in handed] == ["0", "1"]
    for _, size, buffers in handed:
        assert float(size) == pytest.approx(model_mib() / 2, rel=0.1)
        assert float(buffers) == pytest.approx(model_mib(), rel=0.1)


def test_the_bucket_size_bounds_the_largest_bucket(capsys: pytest.CaptureFixture) -> None:
    few, many = shown(capsys), shown(capsys, "--bucket-mib", 1)
    assert "1 buckets in 1 rounds" in few and "2 buckets in 2 rounds" in many
    assert float(re.search(r"largest bucket ([\d.]+) MiB", many)[1]) <= 1.0  # type: ignore[index]


def test_float32_is_twice_as_much(capsys: pytest.CaptureFixture) -> None:
    sizes = [
        float(re.search(r"model ([\d.]+) MiB", shown(capsys, "--dtype", dtype))[1])  # type: ignore[index]
        for dtype in ("bfloat16", "float32")
    ]
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=0.15)


def test_full_prints_every_move(capsys: pytest.CaptureFixture) -> None:
    short = shown(capsys, "--engine-tensor-parallel", 2)
    full = shown(capsys, "--engine-tensor-parallel", 2, "--full")
    assert full.startswith(short)
    moves = re.findall(r"^    rank \d .+ -> .+$", full, re.MULTILINE)
    # 4 layers: qkv (3 runs of rows or more), o, gate and up, down, four norms; embedding and final norm.
    assert len(moves) >= 2 * (4 * (3 + 1 + 2 + 1 + 4) + 2)
    assert "model.layers.3.mlp.gate_up_proj.weight" in full and "gate_up_proj" not in short


def test_collective_and_disk_send_whole_tensors(capsys: pytest.CaptureFixture) -> None:
    collective = shown(capsys, "--tensor-parallel", 2, "--transport", "collective", "--full")
    assert "model.layers.0.self_attn.q_proj.weight" in collective
    assert "rank 1 hands" not in collective
    disk = shown(capsys, "--tensor-parallel", 2, "--transport", "disk")
    assert "rank 0 hands" in disk and "rank 1 hands" in disk


TRANSPORTS: dict[str, Any] = {
    "tensor": lambda groups: TensorTransport(groups, 2),
    "collective": lambda groups: CollectiveTransport(groups, 2),
    "disk": lambda groups: DiskTransport(groups, "folder", MODEL),
}


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2)])
def test_the_plan_is_the_transports_own(name: str, tp: int, pp: int) -> None:
    arch = Qwen3Architecture.from_hf_config(
        {**SMALL, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    )
    training = Training(tp, PipelineStages(pp), arch.padded_vocab_size(tp) // tp)
    transport = TRANSPORTS[name](SimpleNamespace(replica=None, copy=None, copy_index=0))
    assert make_plan(name, arch, training, 2, 5000) == transport.plan(arch, training, 2, 5000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MODEL / "absent",), "does not exist"),
        ((MODEL, "--tensor-parallel", 3), "tensor parallel size 3 does not divide"),
        ((MODEL, "--pipeline-parallel", 3), "pipeline parallel size 3 does not divide"),
        ((MODEL, "--engine-tensor-parallel", 5), "engine tensor parallel size 5 does not divide"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([str(argument) for argument in arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told


@pytest.mark.parametrize("arguments", [[], ["m", "--bucket-mib", "0"], ["m", "--transport", "pigeon"]])
def test_wrong_command_lines_are_refused(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_folder_without_weights_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.json").write_bytes((MODEL / "config.json").read_bytes())
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == shown(capsys)
