"""wandb: real offline runs keep their id over a resume, and no failure of wandb reaches the run."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.report import WandbConfig
from megatron_srpo.report.tracker import ID_FILE, Tracker, run_id
from tests.report.synthetic import row
from tests.waiting import wait_until

OFFLINE = WandbConfig(mode="offline", project="test", tags=("quick", "cpu"), name="my-run")


def _no_warning(text: str) -> None:
    raise AssertionError(text)


def _binary_logs(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


def _records(log: bytes, block: int = 32768) -> bytes:
    """Join a wandb log's records: LevelDB's format cuts them at blocks, 7 bytes before every piece."""
    joined, at = b"", 7  # after the file's own header
    while at + 7 <= len(log):
        if block - at % block < 7:  # too little left in the block for another piece
            at += block - at % block
            continue
        size = int.from_bytes(log[at + 4 : at + 6], "little")
        joined += log[at + 7 : at + 7 + size]
        at += 7 + size
    return joined


def _content(run_dir: Path) -> bytes:
    return b"".join(_records(path.read_bytes()) for path in _binary_logs(run_dir))


def test_offline_run_keeps_its_id_over_a_resume(tmp_path: Path) -> None:
    first = Tracker(OFFLINE, tmp_path, {"seed": 3}, warn=_no_warning)
    drawn = first.run_id
    first.log(row(1) | {"loss/total": None})
    first.finish()
    assert first.run_id is None
    second = Tracker(OFFLINE, tmp_path, {"seed": 3}, resume=True, warn=_no_warning)
    assert second.run_id == drawn
    second.log(row(2))
    second.finish()
    assert (tmp_path / ID_FILE).read_text().strip() == drawn
    # wandb's records are protobufs; metric names and values stand in them as text.
    expected = (b"reward/accuracy", repr(row(2)["reward/accuracy"]).encode(), b"my-run", b"quick")
    # Its service may write them a moment after finish has returned.
    wait_until(lambda: all(text in _content(tmp_path) for text in expected), "values in wandb's logs")
    assert all(path.name == f"run-{drawn}.wandb" for path in _binary_logs(tmp_path))


def test_a_new_run_in_the_folder_draws_a_new_id(tmp_path: Path) -> None:
    assert run_id(tmp_path, resume=False) != run_id(tmp_path, resume=False)


def test_run_id_is_stored_and_read_back(tmp_path: Path) -> None:
    drawn = run_id(tmp_path / "new", resume=True)
    assert len(drawn) == 8 and int(drawn, 16) >= 0
    assert run_id(tmp_path / "new", resume=True) == drawn


def test_an_id_file_emptied_by_a_crash_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ID_FILE).write_text("")
    assert run_id(tmp_path, resume=True) == (tmp_path / ID_FILE).read_text().strip() != ""


def test_failure_to_start_is_a_warning(tmp_path: Path) -> None:
    """A real refusal by wandb: this project name has characters that it does not allow."""
    said: list[str] = []
    tracker = Tracker(WandbConfig(mode="offline", project="a/b?"), tmp_path, warn=said.append)
    assert tracker.run_id is None
    tracker.log({"step": 1, "loss/total": 1.0})
    tracker.finish()
    assert len(said) == 1
    assert "wandb (offline) failed: UsageError" in said[0] and "report.wandb.mode" in said[0]


def test_no_network_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wandb raises when it cannot reach its server; the test itself must not reach out."""
    import wandb

    def unreachable(**settings: Any) -> None:
        assert settings["mode"] == "online" and settings["resume"] == "allow"
        assert settings["settings"].init_timeout == 60.0
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", unreachable)
    said: list[str] = []
    Tracker(WandbConfig(mode="online"), tmp_path, warn=said.append).log({"step": 1})
    assert len(said) == 1 and "CommError: no route to host" in said[0] and "`wandb login`" in said[0]


class FailingRun:
    """Stands for a wandb run whose disk is full."""

    id = "abc"

    def log(self, values: dict[str, float], step: int) -> None:
        raise OSError("no space left")

    def finish(self, exit_code: int) -> None:
        raise OSError("no space left")


@pytest.mark.parametrize("action", ["log", "finish"])
def test_failure_in_the_middle_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **settings: FailingRun())
    said: list[str] = []
    tracker = Tracker(WandbConfig(mode="offline"), tmp_path, warn=said.append)
    assert tracker.run_id == "abc"
    if action == "log":
        tracker.log({"step": 1, "loss/total": 1.0})
        tracker.log({"step": 2, "loss/total": 1.0})
    tracker.finish()
    assert len(said) == 1 and "no space left" in said[0]


class RecordingRun:
    """Notes what reaches wandb."""

    id = "abc"

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_codes: list[int] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def test_rows_reach_wandb_by_step_without_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    run, seen = RecordingRun(), {}
    monkeypatch.setattr(wandb, "init", lambda **settings: seen.update(settings) or run)
    tracker = Tracker(
        WandbConfig(mode="offline", group="g"), tmp_path / "srpo-1", {"seed": 1}, warn=_no_warning
    )
    tracker.log({"step": 4, "loss/total": None, "reward/mean": math.pi})
    tracker.finish(failed=True)
    assert run.logged == [(4, {"reward/mean": math.pi})]
    assert run.exit_codes == [1]
    assert (seen["name"], seen["group"], seen["config"]) == ("srpo-1", "g", {"seed": 1})
    assert seen["dir"] == str(tmp_path / "srpo-1")


_ROOM = """
import sys
from megatron_srpo.report import compare, console, html, metrics, plots, samples, summary, tracker, watch
from megatron_srpo.config.report import WandbConfig
tracker.Tracker(WandbConfig(), "unused").log({"step": 1})
print(sorted({"torch", "wandb", "matplotlib", "transformers"} & set(sys.modules)))
"""


def test_the_room_starts_without_heavy_imports_and_off_means_off() -> None:
    done = subprocess.run([sys.executable, "-c", _ROOM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SIGNALLED = """
import os, signal, sys, psutil
from pathlib import Path
from megatron_srpo import platform
from megatron_srpo.config.report import WandbConfig
from megatron_srpo.report.tracker import Tracker

signal.signal(signal.SIGUSR1, lambda number, frame: None)
with platform.deaf_children():
    tracker = Tracker(WandbConfig(mode="offline"), Path(sys.argv[1]), {}, False, sys.exit)
children = psutil.Process().children(recursive=True)
for child in children:
    child.send_signal(signal.SIGUSR1)
    child.send_signal(signal.SIGTERM)
tracker.log({"step": 1, "reward/mean": 0.625})
alive = [child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children]
tracker.finish()
print(len(children), all(alive))
"""


def test_wandbs_process_survives_what_slurm_tells_every_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    count, alive = done.stdout.split()[-2:]
    assert (int(count) > 0, alive) == (True, "True"), done.stderr
    assert len(_binary_logs(tmp_path)) == 1
