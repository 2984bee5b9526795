"""Logs of every role and slice, followed while they grow."""

from pathlib import Path, PurePosixPath

import pytest

from megatron_srpo.launch.logs import ROLES, Follower, log_files
from megatron_srpo.launch.shell import Shell


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "launch" / "logs"
    folder.mkdir(parents=True)
    return folder


def run_of(logs: Path) -> PurePosixPath:
    return PurePosixPath(logs.parent.parent)


def test_every_role_and_slice_is_found_by_its_name(logs: Path) -> None:
    for name in (
        "log-ranks_12_0.out",
        "log-ranks_12_1.out",
        "server-node3_12_0.out",
        "server-slot0_15.out",
        "guard-node2_12_0.out",
        "sbatch_ranks_12.out",
        "notes.txt",
    ):
        (logs / name).write_text("x\n")
    found = {log.path.name: (log.role, log.label) for log in log_files(run_of(logs), Shell())}
    assert found == {
        "log-ranks_12_0.out": ("ranks", "ranks"),
        "log-ranks_12_1.out": ("ranks", "ranks restart 1"),
        "server-node3_12_0.out": ("server", "server node3"),
        "server-slot0_15.out": ("server", "server slot0"),
        "guard-node2_12_0.out": ("batch", "batch node2"),
        "sbatch_ranks_12.out": ("batch", "batch"),
    }


def test_what_is_new_is_shown_once_and_whole_lines_only(logs: Path) -> None:
    shown: list[str] = []
    follower = Follower(run_of(logs), Shell(), ROLES, shown.append)
    log = logs / "log-ranks_12_0.out"
    log.write_text("step 1\nste")
    follower.look()
    assert shown == ["ranks: step 1"]
    with log.open("a") as file:
        file.write("p 2\nlast")
    follower.look()
    assert shown == ["ranks: step 1", "ranks: step 2"]
    follower.look(last=True)
    assert shown[-1] == "ranks: last"


def test_the_log_of_a_new_slice_is_found(logs: Path) -> None:
    shown: list[str] = []
    follower = Follower(run_of(logs), Shell(), ("ranks",), shown.append)
    (logs / "log-ranks_12_0.out").write_text("before\n")
    follower.look()
    (logs / "log-ranks_12_1.out").write_text("after\n")
    follower.look()
    assert shown == ["ranks: before", "ranks restart 1: after"]


def test_a_tail_counts_for_the_first_look_only(logs: Path) -> None:
    log = logs / "log-ranks_12_0.out"
    log.write_text("".join(f"{number}\n" for number in range(50)))
    shown: list[str] = []
    follower = Follower(run_of(logs), Shell(), ROLES, shown.append, tail=2)
    follower.look()
    with log.open("a") as file:
        file.write("50\n51\n52\n")
    follower.look()
    assert shown == [f"ranks: {number}" for number in range(48, 53)]


def test_bytes_that_are_no_text_lose_nothing_after_them(logs: Path) -> None:
    log = logs / "log-ranks_12_0.out"
    log.write_bytes(b"caf\xc3\xa9 \xff\n")
    shown: list[str] = []
    follower = Follower(run_of(logs), Shell(), ROLES, shown.append)
    follower.look()
    with log.open("ab") as file:
        file.write(b"next\n")
    follower.look()
    assert shown == ["ranks: caf\xe9 \ufffd", "ranks: next"]


def test_a_progress_bar_shows_its_last_state(logs: Path) -> None:
    (logs / "log-ranks_12_0.out").write_text("1 %\r50 %\r100 %\n")
    shown: list[str] = []
    Follower(run_of(logs), Shell(), ROLES, shown.append).look()
    assert shown == ["ranks: 100 %"]


def test_a_run_without_logs_shows_nothing(tmp_path: Path) -> None:
    assert log_files(PurePosixPath(tmp_path), Shell()) == []
