"""The conversion tool as a user runs it: its own ranks, its messages, its exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.model.tiny import write_random_qwen3
from tools.convert_hf import main, parse

ROOT = Path(__file__).resolve().parents[2]


def run_tool(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "convert_hf.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_there_and_back_again_on_its_own_ranks(tmp_path):
    source = write_random_qwen3(tmp_path / "source", vocab_size=100)
    checkpoint, target = tmp_path / "checkpoint", tmp_path / "target"
    done = run_tool("import", source, checkpoint, "--tensor-parallel", 2, "--verify")
    assert done.returncode == 0, done.stderr
    assert "verified: fp32 logits differ" in done.stdout and f"wrote {checkpoint}" in done.stdout
    assert "rank 0: shard" in done.stdout and "rank 1: shard" in done.stdout
    done = run_tool("export", checkpoint, target, "--pipeline-parallel", 2, "--max-file-gb", 2e-5)
    assert done.returncode == 0, done.stderr
    assert len(list(target.glob("*.safetensors"))) > 1
    got = {name: value for file in target.glob("*.safetensors") for name, value in load_file(file).items()}
    expected = load_file(source / "model.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_single_rank_needs_no_launcher(tmp_path):
    source = write_random_qwen3(tmp_path / "source")
    done = run_tool("import", source, tmp_path / "checkpoint")
    assert done.returncode == 0, done.stderr
    assert "writing" in done.stdout  # the progress bar, also when the output is a file
    assert (tmp_path / "checkpoint" / "config.json").is_file()


def _help(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_teaches(capsys):
    text = _help(capsys)
    assert "examples:" in text and "--tensor-parallel 2 --verify" in text and "--hf-files" in text
    assert "Hugging Face folder to read" in _help(capsys, "import")
    assert "Megatron checkpoint to read" in _help(capsys, "export")


def _error(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def test_what_is_wrong_is_said_before_any_rank_starts(tmp_path, capsys):
    source = write_random_qwen3(tmp_path / "source")
    assert (
        "folder" in (text := _error(capsys, "import", tmp_path / "absent", "x")) and "does not exist" in text
    )
    assert "error: tensor parallel size 8 does not divide" in _error(
        capsys, "import", source, tmp_path / "x", "--tensor-parallel", 8
    )
    assert "pipeline parallel size 3 does not divide" in _error(
        capsys, "import", source, tmp_path / "x", "--pipeline-parallel", 3
    )
    (tmp_path / "exists").mkdir()
    assert "exists; remove it" in _error(capsys, "import", source, tmp_path / "exists")
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:500])
    assert "model.safetensors is truncated" in _error(capsys, "import", source, tmp_path / "x")
    assert "config.json does not exist" in _error(capsys, "export", tmp_path / "exists", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["import"], ["import", "a", "b", "--tensor-parallel", "0"], ["import", "a", "b", "--hf-files", "c"]],
)
def test_wrong_command_lines_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err
