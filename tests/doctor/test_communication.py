"""The round trip between two real processes, and what is said when it fails."""

import re
import subprocess
from typing import Any

import pytest
import torch

from megatron_srpo import platform
from megatron_srpo.doctor import communication, rank
from tests.ranks import run_ranks

PATIENCE_S = 600.0  # importing torch takes a minute or more on a machine that is busy with other work


def collectives(rank_: int, world: int) -> tuple[float, float]:
    device = torch.device("cpu")
    return rank._all_reduce(rank_, device), rank._ring(rank_, world, device)


def test_two_fresh_ranks_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: False)
    check = communication.check_communication(PATIENCE_S)
    assert check.status == "ok", check.detail
    assert check.name == "gloo between 2 ranks"
    milliseconds = re.fullmatch(r"all-reduce of 4 bytes in ([0-9.]+) ms", check.detail)
    assert milliseconds and float(milliseconds[1]) > 0


def test_collectives_on_three_ranks() -> None:
    """The sum of 1, 2, 3 on every rank; each rank hears from the one before it."""
    assert run_ranks(3, collectives, timeout=PATIENCE_S) == [(6.0, 2.0), (6.0, 0.0), (6.0, 1.0)]


def test_wrong_value_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"all-reduce returned 2\.0, expected 3\.0"):
        rank._require(2.0, 3.0, "all-reduce")


def test_a_rank_that_fails_is_reported_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: False)
    monkeypatch.setattr(communication, "RANK_MODULE", "megatron_srpo.doctor.no_such_module")
    check = communication.check_communication()
    assert check.status == "fail"
    assert "no_such_module" in check.detail
    assert "GLOO_SOCKET_IFNAME" in check.remedy


def test_a_rank_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of zero seconds is over before any process can answer: both are killed."""
    started: list[subprocess.Popen[str]] = []
    start = communication._start

    def remember(*arguments: Any) -> subprocess.Popen[str]:
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(communication, "_start", remember)
    answers = communication.start_ranks("gloo", 2, timeout_s=0.0)
    assert [good for good, _ in answers] == [False, False]
    assert all("no answer within 0 s" in text for _, text in answers)
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_silent_end_has_a_message() -> None:
    assert communication._last_line("") == "a rank ended without a message"
    assert communication._last_line("first\nlast") == "last"


@pytest.mark.parametrize(("devices", "backend"), [(0, "gloo"), (1, "gloo"), (2, "nccl")])
def test_backend_by_number_of_devices(devices: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses two ranks on one device, so it is tried only with two."""
    asked = []

    def ranks(name: str, world: int, timeout_s: float) -> list[tuple[bool, str]]:
        asked.append((name, world))
        return [(True, "0.10")] * world

    monkeypatch.setattr(platform, "has_cuda", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(communication, "start_ranks", ranks)
    assert communication.check_communication().status == "ok"
    assert asked == [(backend, 2)]


@pytest.mark.gpu(2)
def test_nccl_between_two_devices() -> None:
    check = communication.check_communication()
    assert (check.name, check.status) == ("nccl between 2 ranks", "ok"), check.detail
