"""Waiting for servers, and the bare links."""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo.errors import EngineError
from megatron_srpo.weights.sync import SyncReport
from megatron_srpo.weights.transports.base import Sending, wait_all
from megatron_srpo.weights.transports.link import PROBE_BYTES, best_rate, copy_rate, disk_rate
from megatron_srpo.weights.transports.sender_group import local_address


def answered(value: Any = None, error: Exception | None = None) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error) if error else future.set_result(value)
    return future


def test_answers_come_by_name() -> None:
    assert wait_all({"a": answered(1), "b": answered(2)}, 1.0, "step") == {"a": 1, "b": 2}


def test_a_server_that_does_not_answer_is_named_with_step_and_remedy() -> None:
    with pytest.raises(
        EngineError, match=r"server b did not answer within 0 s: sending x; .*sync\.timeout_s"
    ):
        wait_all({"a": answered(), "b": Future()}, 0.01, "sending x")


def test_a_servers_error_names_the_step() -> None:
    with pytest.raises(EngineError, match="sending bucket 3: out of memory"):
        Sending("sending bucket 3", {"a": answered(error=EngineError("out of memory"))}).wait(1.0)


def test_a_failed_answer_is_found_whichever_it_is() -> None:
    answers = {name: answered() for name in "abc"} | {"d": answered(error=EngineError("no"))}
    with pytest.raises(EngineError, match="no"):
        Sending("x", answers).wait(1.0)


def test_a_failure_ends_the_wait_for_those_who_never_answer() -> None:
    """Members of a broadcast hang when one of them is lost."""
    answers: dict[str, Future[Any]] = {"hangs": Future(), "lost": Future()}
    failing = threading.Timer(0.1, answers["lost"].set_exception, [EngineError("it is lost")])
    failing.start()
    with pytest.raises(EngineError, match="x: it is lost"):
        wait_all(answers, 600.0, "x")
    failing.join()


def test_servers_on_loopback_reach_the_trainer_there() -> None:
    assert local_address(["http://127.0.0.1:1", "http://localhost:2"]) == "127.0.0.1"


def test_a_server_elsewhere_is_given_the_address_of_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Way:
        def __init__(self, *kind: int) -> None:
            pass

        def __enter__(self) -> "Way":
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def connect(self, address: tuple[str, int]) -> None:
            if address[0] != "192.0.2.7":
                raise OSError("Network is unreachable")

        def getsockname(self) -> tuple[str, int]:
            return "192.0.2.1", 40000

    monkeypatch.setattr("socket.socket", Way)
    assert local_address(["http://127.0.0.1:1", "http://192.0.2.7:2"]) == "192.0.2.1"
    with pytest.raises(EngineError, match=r"no way to the server 198\.51\.100\.1 .*rollout\.sync\.address"):
        local_address(["http://198.51.100.1:2"])


def test_a_rate_is_that_of_the_faster_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert best_rate(lambda: None, 8) == 4.0


def test_links_are_measured_and_leave_nothing(tmp_path: Path) -> None:
    assert copy_rate(torch.empty(1000)) > 0
    assert disk_rate(tmp_path) > PROBE_BYTES / 60  # slower than a probe a minute is no disk
    assert list(tmp_path.iterdir()) == []


def test_the_report_counts_only_what_moves_weights() -> None:
    report = SyncReport(
        3, 6_000_000_000, {"pause": 5.0, "gather": 1.0, "send": 2.0, "verify": 9.0}, link_rate=4e9
    )
    assert report.gigabytes_per_second == pytest.approx(2.0)
    assert report.link_share == pytest.approx(0.5)
    assert report.total_seconds == 17.0
    assert SyncReport(0, 1).link_share is None
