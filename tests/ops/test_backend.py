"""Triton where it can be used, PyTorch elsewhere, and the reason said."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from megatron_srpo.ops import backend
from megatron_srpo.ops.rows import TorchRows


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    backend.kernels.cache_clear()
    yield
    backend.kernels.cache_clear()


def pretend(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, capability: tuple[int, int] = (9, 0), triton: bool = True
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    spec = importlib.util.spec_from_loader("triton", None) if triton else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


@pytest.mark.parametrize(
    ("cuda", "capability", "triton", "used", "reason"),
    [
        (False, (9, 0), True, False, "no CUDA device"),
        (True, (8, 6), True, False, "compute capability 8.6"),
        (True, (9, 0), False, False, "Triton is not installed"),
        (True, (9, 0), True, True, "Triton kernels"),
        (True, (10, 0), True, True, "Triton kernels"),
    ],
)
def test_what_the_machine_has_decides(
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool,
    capability: tuple[int, int],
    triton: bool,
    used: bool,
    reason: str,
) -> None:
    pretend(monkeypatch, cuda, capability, triton)
    chosen, said = backend.kernels()
    assert chosen == used and reason in said


def test_tensors_on_the_cpu_get_pytorch_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True)
    assert isinstance(backend.rows_for(torch.zeros(1)), TorchRows)
