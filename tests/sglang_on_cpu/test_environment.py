"""The environment in which servers are started."""

import os

import pytest

from megatron_srpo import platform

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "4",
    "ROLE_NAME": "default",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(platform, "has_cuda", lambda: False)
    for name in ("SGLANG_CPU_OMP_THREADS_BIND", "SGLANG_EXTERNAL_MODEL_PACKAGE", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_server_does_not_take_the_trainers_rank(on_cpu: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        on_cpu.setenv(name, value)
    on_cpu.setenv("SOMETHING_ELSE", "kept")
    environment = platform.sglang_environment(None, 1)
    assert not TORCHRUN.keys() & environment.keys()
    assert environment["SOMETHING_ELSE"] == "kept"
    assert os.environ["RANK"] == "3", "the trainer keeps its own"


def test_one_thread_per_rank(on_cpu: pytest.MonkeyPatch) -> None:
    on_cpu.delenv("OMP_NUM_THREADS", raising=False)
    assert platform.sglang_environment(None, 1)["OMP_NUM_THREADS"] == "1"


def test_without_cuda(on_cpu: pytest.MonkeyPatch) -> None:
    environment = platform.sglang_environment(None, 1)
    assert environment["SGLANG_USE_CPU_ENGINE"] == environment["TORCHDYNAMO_DISABLE"] == "1"
    assert environment["SGLANG_EXTERNAL_MODEL_PACKAGE"] == "megatron_srpo.sglang_on_cpu.models"
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in environment
    on_cpu.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", "mine")
    assert platform.sglang_environment(None, 1)["SGLANG_EXTERNAL_MODEL_PACKAGE"] == "mine"


@pytest.mark.parametrize(("cores", "expected"), [({4, 5, 6}, "4|5"), ({7}, "7|7")])
def test_cores_of_two_ranks(on_cpu: pytest.MonkeyPatch, cores: set[int], expected: str) -> None:
    """SGLang asks for them where ranks outnumber NUMA nodes."""
    on_cpu.setattr(os, "sched_getaffinity", lambda pid: cores)
    assert platform.sglang_environment(None, 2)["SGLANG_CPU_OMP_THREADS_BIND"] == expected
    on_cpu.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|9")
    assert platform.sglang_environment(None, 2)["SGLANG_CPU_OMP_THREADS_BIND"] == "0|9"


def test_with_cuda_sglang_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: True)
    added = platform.sglang_environment(None, 4).keys() - platform.child_environment().keys()
    assert added == set()


def test_the_key_is_handed_over(on_cpu: pytest.MonkeyPatch) -> None:
    assert "secret" in platform.sglang_environment("secret", 1).values()
    assert "secret" not in os.environ.values()
    assert platform.take_sglang_api_key() is None
