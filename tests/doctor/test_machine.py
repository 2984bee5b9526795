"""Findings about device, threads, memory and disk, at their thresholds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_srpo import platform
from megatron_srpo.doctor import machine

GIB = machine.GIB


def pretend_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)


def pretend_threads(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setattr(platform, "child_environment", lambda: {"OMP_NUM_THREADS": setting})


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: False)


@pytest.mark.parametrize(
    ("setting", "ranks", "status"),
    [("1", 2, "ok"), ("1", 8, "ok"), ("2", 1, "ok"), ("2", 2, "warn"), ("0", 1, "fail"), ("many", 1, "fail")],
)
def test_threads_on_two_cores(
    setting: str, ranks: int, status: str, monkeypatch: pytest.MonkeyPatch, no_cuda: None
) -> None:
    """One thread per rank is always accepted; more only while the ranks' threads fit on the cores."""
    pretend_cores(monkeypatch, 2)
    pretend_threads(monkeypatch, setting)
    check = machine.check_threads(ranks)
    assert check.status == status
    assert setting in check.detail
    assert ("OMP_NUM_THREADS=1" in check.remedy) == (status != "ok")


def test_threads_do_not_matter_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cores(monkeypatch, 2)
    pretend_threads(monkeypatch, "16")
    monkeypatch.setattr(platform, "has_cuda", lambda: True)
    assert machine.check_threads(8).status == "ok"


@pytest.mark.parametrize(
    ("gib", "status"), [(16, "ok"), (4, "ok"), (3.9, "warn"), (2, "warn"), (1.9, "fail")]
)
def test_memory_thresholds(gib: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=gib * GIB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    check = machine.check_memory()
    assert check.status == status
    assert f"{gib:.1f} GiB" in check.detail
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(("gib", "status"), [(5, "ok"), (4.9, "warn"), (0.4, "fail")])
def test_disk_thresholds(gib: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "disk_usage", lambda path: SimpleNamespace(free=gib * GIB))
    assert machine.check_disk(".").status == status


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space is that of the nearest folder above which exists."""
    asked: list[str] = []

    def usage(path: str) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=9 * GIB)

    monkeypatch.setattr(machine.psutil, "disk_usage", usage)
    check = machine.check_disk(tmp_path / "runs" / "first")
    assert asked == [str(tmp_path.resolve())]
    assert str(tmp_path / "runs" / "first") in check.detail


def test_cpu_is_good_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, no_cuda: None) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    check = machine.check_accelerator()
    assert check.status == "ok"
    assert "gloo" in check.detail and torch.__version__ in check.detail


@pytest.mark.parametrize(("cuda", "phrase"), [(None, "CPU build"), ("13.0", "no CUDA device")])
def test_an_unused_gpu_is_a_warning(
    cuda: str | None, phrase: str, monkeypatch: pytest.MonkeyPatch, no_cuda: None
) -> None:
    """nvidia-smi is there but torch computes on the CPU: say why, the build or the driver."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    check = machine.check_accelerator()
    assert check.status == "warn"
    assert phrase in check.detail and check.remedy


@pytest.mark.gpu
def test_cuda_device_is_named() -> None:
    check = machine.check_accelerator()
    assert check.status == "ok"
    assert torch.cuda.get_device_name(0) in check.detail and "NCCL" in check.detail


@pytest.mark.parametrize(
    ("cuda", "used", "status"), [(False, False, "ok"), (True, True, "ok"), (True, False, "warn")]
)
def test_loss_kernels(monkeypatch: pytest.MonkeyPatch, cuda: bool, used: bool, status: str) -> None:
    """PyTorch in place of Triton is worth a warning where there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(machine, "kernels", lambda: (used, "as it is"))
    check = machine.check_loss_kernels()
    assert (check.status, check.detail) == (status, "as it is")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (platform.Accelerator(), "not available; there is no CUDA device"),
        (
            platform.Accelerator((9, 0), (12, 9), "2.8.0"),
            "delayed, tensorwise, blockwise; the device has compute capability 9.0, mxfp8 needs 10.0",
        ),
        (platform.Accelerator((10, 0), (13, 0), "2.10.0"), "delayed, tensorwise, blockwise, mxfp8"),
    ],
)
def test_fp8_recipes(found: platform.Accelerator, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "accelerator", lambda: found)
    check = machine.check_fp8()
    assert (check.status, check.detail) == ("ok", said)
