"""A scaling study over the nodes of a Slurm cluster: bookkeeping and shape, not speed."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.slurm.jobs import Jobs
from tests.tools.test_scaling_study import QUICKSTART, SMALL, check_study, read

pytest.importorskip("nemo_run", reason="nemo-run is not installed (make install-launch)")

LAUNCH = {
    "ranks_per_node": 1,
    "environment": {"PYTHONPATH": str(REPOSITORY)},
    "code": {"package": "none"},
    "slurm": {"account": "test", "gpus_per_node": 0, "time": 60, "stop_before_s": 60},
}
SWEEP = ["--nodes", "1", "2", "4", "--steps", "3", "--warmup", "1", "--gpu", "h100"]


@pytest.mark.slow
def test_a_study_over_one_two_and_four_nodes(jobs: Jobs, tmp_path: Path) -> None:
    out = tmp_path / "study"
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(LAUNCH))
    done = study(jobs, tmp_path, out)
    assert done.returncode == 0, done.stderr

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
    # All jobs are in the queue before the first one ends; the run at one node serves both modes.
    said = done.stderr.splitlines()
    submitted = [index for index, line in enumerate(said) if ": Slurm job " in line]
    ended = [index for index, line in enumerate(said) if line.endswith(": finished")]
    assert len(submitted) == len(ended) == 5
    assert max(submitted) < min(ended)

    again = study(jobs, tmp_path, out)
    assert again.returncode == 0 and ": Slurm job " not in again.stderr
    assert read(out) == lines


def study(jobs: Jobs, folder: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    """Run the study's command on the cluster's login node."""
    environment = [f"PYTHONPATH={REPOSITORY}", f"NEMORUN_HOME={folder / 'nemo'}"]
    command = [sys.executable, "-m", "tools.scaling_study", *QUICKSTART, *SWEEP, *SMALL]
    places = ["--launch", folder / "cluster.yaml", "--out", out]
    line = jobs.cluster.command("env", *environment, *command, *places)
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=2400)
