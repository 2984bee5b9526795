"""A rank that hangs is found by its silence: nvidia-resiliency-ext's launcher in a real launch."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_srpo.report.metrics import read_metrics
from tests.session.test_loop import SMALL

ROOT = Path(__file__).parents[2]
RESILIENCY = Path(sys.prefix) / "resiliency"
STEPS = 8


def command(output: Path, *launch: str) -> list[str]:
    setup = f"[export PATH={RESILIENCY}/bin:$PATH, export PYTHONPATH={ROOT}:{RESILIENCY}]"
    return [
        *(sys.executable, "-m", "megatron_srpo.cli", "launch", "--executor", "local"),
        *("--config", str(ROOT / "examples" / "quickstart.yaml"), *SMALL),
        *("parallel.tensor=1", "parallel.sequence=false", "checkpoint.every=2", f"training.steps={STEPS}"),
        *(f"output_dir={output}", "launch.ranks_per_node=2", f"launch.setup={setup}", *launch),
    ]


def rank_1_of(launch: subprocess.Popen[bytes]) -> psutil.Process:
    for process in psutil.Process(launch.pid).children(recursive=True):
        words = process.cmdline()
        if "train" in words and process.environ().get("RANK") == "1":
            return process
    raise AssertionError("the launch has no rank 1")


def wait_for_steps(output: Path, steps: int, launch: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while len(list(read_metrics(output / "metrics.jsonl"))) < steps:
        assert launch.poll() is None, "the launch has ended early"
        assert time.monotonic() < deadline, "the steps do not come"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not RESILIENCY.is_dir(), reason="needs nvidia-resiliency-ext (make install-resiliency)")
def test_ranks_that_hang_are_started_again_and_go_on(tmp_path: Path) -> None:
    pytest.importorskip("nemo_run", reason="needs nemo-run (make install-launch)")
    output = tmp_path / "run"
    with open(tmp_path / "log", "wb") as log:
        launch = subprocess.Popen(
            command(output, "launch.launcher=ft_launcher", "launch.hang_timeout_s=60"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            wait_for_steps(output, 3, launch)
            rank_1_of(launch).send_signal(signal.SIGSTOP)
            status = launch.wait(timeout=400)
        finally:
            launch.kill()
    assert status == 0, (tmp_path / "log").read_text()[-3000:]
    said = json.loads((output / "status.json").read_text())
    assert (said["state"], said["step"], said["attempt"]) == ("finished", STEPS, 2)
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == list(range(1, STEPS + 1))
