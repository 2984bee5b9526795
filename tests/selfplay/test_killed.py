"""A self-play that is killed, or asked to stop, ends as one that was left alone."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_srpo import platform
from megatron_srpo.session.stop import STOPPED_STATUS
from tests.selfplay.plays import ROOT, SMALL, example
from tools.kill_self_play import run_and_kill, run_to_end
from tools.self_play_state import differences, fingerprint, kept_twice

COMMAND = [
    *(sys.executable, "-m", "megatron_srpo.cli", "self-play", "--config", str(example("r_diverse"))),
    *("--resume-if-started", *SMALL),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("whole") / "play"
    return folder, run_to_end(COMMAND, folder)


def test_kills_leave_no_trace(whole: tuple[Path, float], tmp_path: Path) -> None:
    """Three kills of one self-play, each in another third of it; tools/kill_self_play.py makes more."""
    folder, seconds = whole
    expected = fingerprint(folder)
    assert len(expected) == 2 * 7 + 3
    generator = random.Random(3)
    killed = tmp_path / "play"
    positions = [run_and_kill(COMMAND, killed, generator.uniform(0.3, 0.6) * seconds) for _ in range(3)]
    run_to_end(COMMAND, killed)
    assert differences(expected, fingerprint(killed)) == [], positions
    assert kept_twice(killed) == 0


@pytest.mark.slow
def test_a_stop_file_ends_it_with_its_status(whole: tuple[Path, float], tmp_path: Path) -> None:
    folder = tmp_path / "play"
    process = subprocess.Popen([*COMMAND, f"output_dir={folder}"], env=platform.child_environment(), cwd=ROOT)
    until = time.monotonic() + 300
    while not (folder / "iteration_01" / "kept").exists() and time.monotonic() < until:
        time.sleep(0.05)
    (folder / "stop").touch()
    assert process.wait(timeout=300) == STOPPED_STATUS
    assert '"stopped"' in (folder / "status.json").read_text()
    run_to_end(COMMAND, folder)
    assert differences(fingerprint(whole[0]), fingerprint(folder)) == []
