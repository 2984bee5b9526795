"""What only a CUDA device can show. Skipped, and counted, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo.ops import VocabShard, vocab_parallel_log_prob, vocab_parallel_topk_divergence
from tests.model.tiny import write_random_qwen3

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    return str(write_random_qwen3(path, num_key_value_heads=4, tie_word_embeddings=True))


def run_step(folder: str, algorithm: str, cuda: bool) -> dict[str, Any]:
    hidden = {} if cuda else {"CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **hidden, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.gpu.one_step", folder, algorithm]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("algorithm", ["grpo", "sdpo", "srpo", "advantage_mix"])
def test_a_step_on_cuda_equals_the_step_on_the_cpu(folder: str, algorithm: str) -> None:
    cpu, cuda = run_step(folder, algorithm, cuda=False), run_step(folder, algorithm, cuda=True)
    assert (cpu["device"], cpu["backend"]) == ("cpu", "gloo")
    assert (cuda["device"], cuda["backend"]) == ("cuda", "nccl")
    # fp32 without TF32 on both; sums are taken in other orders (1e-6), and the second step sees them twice.
    assert cuda["grad_norms"] == pytest.approx(cpu["grad_norms"], rel=1e-4)
    assert cuda["denominator"] == cpu["denominator"]
    for name, value in cpu["sums"].items():
        assert cuda["sums"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for name, norm in cpu["weights"].items():
        assert cuda["weights"][name] == pytest.approx(norm, rel=1e-5), name


def test_preparing_megatron_changes_nothing_in_torch() -> None:
    code = """
import torch
names = ("current_device", "synchronize", "set_device", "get_rng_state", "manual_seed", "Stream")
before = [getattr(torch.cuda, name) for name in names] + [torch.Tensor.cuda, torch.Tensor.type, torch.zeros]
from megatron_srpo.model import megatron_core
after = [getattr(torch.cuda, name) for name in names] + [torch.Tensor.cuda, torch.Tensor.type, torch.zeros]
assert all(a is b for a, b in zip(before, after))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_on_cuda_equal_those_on_the_cpu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    student = (torch.randn(64, 1000, generator=generator) * 3).to(dtype)
    teacher = (torch.randn(64, 1000, generator=generator) * 3).to(dtype)
    target = torch.randint(0, 1000, (64,), generator=generator)
    shard = VocabShard(None, 1000, 1000)

    def results(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        scores = vocab_parallel_log_prob(student.to(device), target.to(device), shard, entropy=True)
        divergence = vocab_parallel_topk_divergence(
            student.to(device), teacher.to(device), 0.5, 50, shard, tail=True
        )
        return scores.log_prob_T.cpu(), divergence.cpu()

    for cpu, cuda in zip(results("cpu"), results("cuda"), strict=True):
        # The same fp32 maths on the same (rounded) logits; exp and log differ in the last bits.
        torch.testing.assert_close(cuda, cpu, rtol=1e-4, atol=1e-5)


def test_memory_of_earlier_work_is_given_back() -> None:
    from megatron_srpo import platform

    work = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    size = work.nbytes
    del work
    free = torch.cuda.mem_get_info()[0]
    platform.give_back_memory()
    assert torch.cuda.mem_get_info()[0] >= free + size


def test_an_offloaded_model_frees_the_device() -> None:
    from megatron_srpo.training.offload import HostWeights

    model = torch.nn.Linear(4096, 4096, bias=False, device="cuda")
    size, before = model.weight.nbytes, torch.cuda.memory_allocated()
    expected = model.weight.detach().cpu()
    weights = HostWeights(model)
    assert torch.cuda.memory_allocated() == before - size
    assert model.weight.device.type == "cpu" and model.weight.is_pinned()
    with weights.on_device():
        assert torch.cuda.memory_allocated() == before
        assert model.weight.device.type == "cuda" and torch.equal(model.weight.cpu(), expected)
    assert torch.cuda.memory_allocated() == before - size
