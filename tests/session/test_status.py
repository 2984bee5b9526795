"""status.json says how a run stands, whoever failed first; signals are remembered, no more."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from megatron_srpo.errors import ConfigError
from megatron_srpo.session.status import RunStatus, read_status
from megatron_srpo.session.stop import STOP_SIGNALS, StopRequested, StopSignals
from megatron_srpo.training.fence import claim


class TestStatus:
    def test_a_run_from_start_to_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        claim(tmp_path)
        with RunStatus(claim(tmp_path), 10, rank=0, step=4) as status:
            first = read_status(tmp_path)
            assert {**first, "time": "", "host": ""} == {
                "state": "running",
                "step": 4,
                "steps": 10,
                "reason": "",
                "attempt": 2,
                "host": "",
                "pid": os.getpid(),
                "job": "12_0",
                "time": "",
            }
            status.running(5)
            assert read_status(tmp_path)["step"] == 5
            status.finished()
        assert read_status(tmp_path)["state"] == "finished"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fence", "status.json"]

    def test_a_stop_keeps_its_reason(self, tmp_path: Path) -> None:
        with RunStatus(claim(tmp_path), 10, rank=0) as status:
            status.running(3)
            status.stopped("SIGUSR1", 2)
        found = read_status(tmp_path)
        assert (found["state"], found["step"], found["reason"]) == ("stopped", 2, "SIGUSR1")

    def test_a_stop_while_servers_are_waited_for(self, tmp_path: Path) -> None:
        with pytest.raises(StopRequested), RunStatus(claim(tmp_path), 10, rank=0, step=4):
            raise StopRequested("SIGTERM")
        found = read_status(tmp_path)
        assert (found["state"], found["step"]) == ("stopped", 4)
        assert found["reason"] == "stopped on request (SIGTERM)"

    def test_leaving_early_is_no_success(self, tmp_path: Path) -> None:
        with RunStatus(claim(tmp_path), 10, rank=0) as status:
            status.running(3)
        found = read_status(tmp_path)
        assert (found["state"], found["reason"]) == ("failed", "left after step 3 of 10, before its end")

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ConfigError("seed = -1 is too small"), "seed = -1 is too small"),
            (RuntimeError("out of memory"), "RuntimeError: out of memory"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
        ],
    )
    def test_a_failure_says_what_it_was(self, tmp_path: Path, error: BaseException, reason: str) -> None:
        with pytest.raises(type(error)), RunStatus(claim(tmp_path), 10, rank=0):
            raise error
        assert (read_status(tmp_path)["state"], read_status(tmp_path)["reason"]) == ("failed", reason)

    def test_the_rank_that_failed_first_is_heard(self, tmp_path: Path) -> None:
        """Rank 0 then sees a closed connection only, which says nothing."""
        fence = claim(tmp_path)
        first, other, third = (RunStatus(fence, 10, rank) for rank in range(3))
        with pytest.raises(RuntimeError), first:
            for rank, text in ((other, "CUDA out of memory"), (third, "Connection closed by peer")):
                with pytest.raises(RuntimeError), rank:
                    raise RuntimeError(text)
            raise RuntimeError("Connection closed by peer")
        assert read_status(tmp_path)["reason"] == "rank 1: RuntimeError: CUDA out of memory"
        with pytest.raises(RuntimeError), RunStatus(claim(tmp_path), 10, rank=0):  # the next start
            raise RuntimeError("another one")
        assert read_status(tmp_path)["reason"] == "RuntimeError: another one"

    def test_other_ranks_are_silent_otherwise(self, tmp_path: Path) -> None:
        with RunStatus(claim(tmp_path), 10, rank=1) as status:
            status.running(1)
            status.finished()
        assert read_status(tmp_path) == {}

    def test_a_folder_that_was_taken_over_is_left_alone(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), RunStatus(claim(tmp_path), 10, rank=0) as status:
            claim(tmp_path)
            before = (tmp_path / "status.json").read_bytes()
            status.running(7)
            status.stopped("SIGTERM", 7)
            raise RuntimeError
        assert (tmp_path / "status.json").read_bytes() == before

    @pytest.mark.parametrize("content", ["", "{", "[1]", json.dumps("x")])
    def test_a_status_that_cannot_be_read_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "status.json").write_text(content)
        assert read_status(tmp_path) == {}


class TestSignals:
    def test_the_first_one_is_remembered_and_all_handlers_come_back(self) -> None:
        before = [signal.getsignal(number) for number in STOP_SIGNALS]
        with StopSignals() as signals:
            assert signals.asked is None
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
            assert signals.asked == "SIGUSR1"
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before

    def test_ignored_signals_are_heard_inside_and_ignored_again_after(self) -> None:
        """As for ranks under a launcher whose shell ignores them."""
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            with StopSignals() as signals:
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked == "SIGTERM"
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_another_thread_changes_no_handlers(self) -> None:
        def enter() -> None:
            with StopSignals():
                found.append(signal.getsignal(signal.SIGTERM))

        before, found = signal.getsignal(signal.SIGTERM), []
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert found == [before]
