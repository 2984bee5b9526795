"""Dead, frozen or busy: with a clock moved by hand and scripted answers, then with a real server."""

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch
from tests.waiting import wait_until

HANG_S = 300.0
OK, BROKEN = Reply(200, b"{}"), Reply(503, b"")
REFUSED, SILENT = ConnectionRefusedError(), TimeoutError()


class Server:
    """Answers as told; time passes only when the test says so."""

    def __init__(self, alive: bool | None = True) -> None:
        self.now, self.info, self.tokens = 0.0, OK, 0
        self.loads: Reply | None = None
        self.alive = alive
        self.asked: list[str] = []
        is_alive = None if alive is None else lambda: bool(self.alive)
        self.watch = ServerWatch(
            Endpoint("http://h:1"), is_alive, HANG_S, clock=lambda: self.now, fetch=self.fetch
        )

    def fetch(self, endpoint: Endpoint, path: str, timeout_s: float) -> Reply | OSError:
        assert 0 < timeout_s <= HANG_S / 3
        self.asked.append(path)
        if path == "/server_info":
            return self.info
        return self.loads or Reply(200, b'{"timestamp": %f, "loads": [%d]}' % (self.now, self.tokens))

    def after(self, seconds: float, checks: int = 1) -> Condition:
        for _ in range(checks):
            self.now += seconds / checks
            self.watch.check()
        return self.watch.condition


def test_an_answer_that_took_a_turn_of_the_scheduler_is_health() -> None:
    server = Server()
    assert server.after(1000.0) is Condition.HEALTHY
    assert server.asked == ["/server_info"], "nothing that computes is asked of a healthy server"
    assert server.watch.silent_s == 0.0


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_an_answer(status: int) -> None:
    server = Server()
    server.info = Reply(status, b"")
    assert server.after(1000.0, checks=9) is Condition.HEALTHY


def test_an_ended_process_is_dead_without_a_probe() -> None:
    server = Server()
    server.alive = False
    assert server.watch.condition is Condition.DEAD
    assert server.asked == []


def test_a_port_that_refuses_repeatedly_is_dead() -> None:
    server = Server(alive=None)
    server.info = REFUSED
    assert server.after(2.0, checks=2) is Condition.HEALTHY
    assert server.after(1.0) is Condition.DEAD


def test_refusals_must_be_consecutive() -> None:
    server = Server(alive=None)
    for _ in range(5):
        server.info = REFUSED
        server.after(2.0, checks=2)
        server.info = SILENT
        assert server.after(1.0) is Condition.HEALTHY


@pytest.mark.parametrize("answer", [SILENT, BROKEN, ConnectionResetError()])
def test_silence_is_frozen_only_after_the_time_limit(answer: Reply | OSError) -> None:
    server = Server()
    server.info = answer
    assert server.after(HANG_S - 1, checks=20) is Condition.HEALTHY
    assert server.after(2.0) is Condition.FROZEN
    assert server.watch.silent_s == pytest.approx(HANG_S + 1)


def test_a_suspended_trainer_does_not_blame_the_server() -> None:
    """After an hour asleep, one probe that was cut off says nothing; three in a row do."""
    server = Server()
    server.info = SILENT
    assert server.after(3600.0) is Condition.HEALTHY
    assert server.after(2.0, checks=2) is Condition.FROZEN


def test_a_busy_server_whose_counters_move_is_healthy() -> None:
    server = Server()
    server.info = SILENT
    for _ in range(100):
        server.tokens += 1
        assert server.after(100.0) is Condition.HEALTHY


def test_the_time_stamp_of_the_answer_is_no_movement() -> None:
    server = Server()
    server.info = SILENT
    assert server.after(2 * HANG_S, checks=30) is Condition.FROZEN


@pytest.mark.parametrize(
    "loads", [Reply(404, b""), Reply(200, b"not JSON"), Reply(200, b"[]"), Reply(200, b"{}")]
)
def test_counters_that_are_not_understood_are_no_movement(loads: Reply) -> None:
    server = Server()
    server.info, server.loads = SILENT, loads
    assert server.after(2 * HANG_S, checks=30) is Condition.FROZEN


def test_finished_requests_are_progress() -> None:
    server = Server()
    server.info = SILENT
    for _ in range(20):
        assert server.after(HANG_S - 1, checks=10) is Condition.HEALTHY
        server.watch.note_progress()
    assert server.after(HANG_S + 1, checks=10) is Condition.FROZEN


def test_a_frozen_server_that_moves_again_is_healthy() -> None:
    server = Server()
    server.info = SILENT
    assert server.after(2 * HANG_S, checks=10) is Condition.FROZEN
    server.info = OK
    assert server.after(1.0) is Condition.HEALTHY


@given(st.lists(st.sampled_from(["answer", "progress", "silence"]), max_size=40))
def test_never_frozen_within_the_limit_of_the_last_sign(events: list[str]) -> None:
    server, last = Server(), 0.0
    for event in events:
        server.info = OK if event == "answer" else SILENT
        condition = server.after(60.0)
        if event == "progress":
            server.watch.note_progress()
        if event != "silence":
            last = server.now
        else:
            assert (condition is Condition.FROZEN) <= (server.now - last >= HANG_S)


def test_the_thread_probes_until_it_is_stopped() -> None:
    asked: list[str] = []

    def answer(endpoint: Endpoint, path: str, timeout_s: float) -> Reply:
        asked.append(path)
        return OK

    with ServerWatch(Endpoint("http://h:1"), None, 0.06, fetch=answer) as watch:
        wait_until(lambda: len(asked) > 3, "several probes")
    watch._thread.join(5.0)
    assert not watch._thread.is_alive()


def scheduler_of(server: HttpProcess) -> psutil.Process:
    for child in psutil.Process(server.pid).children(recursive=True):
        if any("scheduler" in word for word in child.cmdline()):
            return child
    raise AssertionError("the server has no scheduler process")
