"""Optimizer and teacher in host memory, on a real device: the same training, less of its memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.model.tiny import write_random_qwen3

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.gpu


def steps(folder: str, checkpoints: Path, offload: bool, *more: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    arguments = [folder, str(checkpoints), str(int(offload)), *more]
    command = [sys.executable, "-m", "tests.gpu.offloaded_steps", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_training_is_the_same_and_the_state_is_elsewhere(tmp_path: Path) -> None:
    folder = str(write_random_qwen3(tmp_path / "model", num_key_value_heads=4, tie_word_embeddings=True))
    device, host = (steps(folder, tmp_path, offload) for offload in (False, True))
    assert device["devices"] == ["cuda"] and host["devices"] == ["cpu"] and host["pinned"]
    assert host["allocated"] <= device["allocated"] - device["state"]
    # The same kernels, deterministic ones, on the same numbers.
    assert host["norms"] == device["norms"]
    assert (host["weights"], host["teacher"]) == (device["weights"], device["teacher"])
    for offload in (False, True):
        resumed = steps(folder, tmp_path, offload, "--resume")
        assert resumed["norms"] == device["norms"][1:]
        assert (resumed["weights"], resumed["teacher"]) == (device["weights"], device["teacher"])
