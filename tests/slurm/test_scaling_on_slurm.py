"""A scaling study over the nodes of a Slurm cluster: bookkeeping and shape, not speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.slurm.jobs import Jobs
from tests.tools.test_scaling_study import QUICKSTART, SMALL, check_study, read
from tools.virtual_slurm.system import wait_until

pytest.importorskip("nemo_run", reason="nemo-run is not installed (make install-launch)")

LAUNCH = {
    "ranks_per_node": 1,
    "environment": {"PYTHONPATH": str(REPOSITORY)},
    "code": {"package": "none"},
    "slurm": {"account": "test", "gpus_per_node": 0, "time": 60, "stop_before_s": 60},
}
SWEEP = ["--nodes", "1", "2", "4", "--steps", "3", "--warmup", "1", "--gpu", "h100"]


POINTS = ("base-n1-k0", "weak-n2-k0", "strong-n2-k0", "weak-n4-k0", "strong-n4-k0")


@pytest.mark.slow
def test_a_study_over_one_two_and_four_nodes_goes_on_after_it_was_killed(jobs: Jobs, tmp_path: Path) -> None:
    out = tmp_path / "study"
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(LAUNCH))
    with subprocess.Popen(command(jobs, tmp_path, out), cwd=tmp_path, stderr=subprocess.DEVNULL) as killed:
        records = [out / "points" / name / "launch" / "job.json" for name in POINTS]
        wait_until(lambda: all(path.exists() for path in records), "all jobs to be submitted", 300)
        killed.kill()
    numbers = [json.loads(path.read_text())["job_id"] for path in records]

    line = command(jobs, tmp_path, out)
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr
    assert [json.loads(path.read_text())["job_id"] for path in records] == numbers  # taken up, not made anew
    assert ": Slurm job " not in done.stderr
    assert all(f"{name}: finished" in done.stderr for name in POINTS)

    lines = read(out)
    check_study(lines, out)
    assert [(one["mode"], one["nodes"], one["train_gpus"], one["prompts_per_step"]) for one in lines] == [
        ("weak", "1", "1", "4"),
        ("weak", "2", "2", "8"),
        ("weak", "4", "4", "16"),
        ("strong", "1", "1", "4"),
        ("strong", "2", "2", "4"),
        ("strong", "4", "4", "4"),
    ]
    assert {one["first_nodes"] for one in lines} == {"1"}
    # The same prompts and seeds on every number of nodes: strong scaling changes no token.
    assert len({one["tokens_per_step"] for one in lines if one["mode"] == "strong"}) == 1


def command(jobs: Jobs, folder: Path, out: Path) -> list[str]:
    """Return the command line of the study, on the cluster's login node."""
    environment = [f"PYTHONPATH={REPOSITORY}", f"NEMORUN_HOME={folder / 'nemo'}"]
    words = [sys.executable, "-m", "tools.scaling_study", *QUICKSTART, *SWEEP, *SMALL]
    places = ["--launch", folder / "cluster.yaml", "--out", out]
    return jobs.cluster.command("env", *environment, *words, *places)
