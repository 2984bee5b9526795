"""A self-play as a Slurm job that loses its node."""

from pathlib import Path

import pytest

from megatron_srpo.config.loader import to_yaml
from tests.selfplay.plays import small_play
from tests.slurm.jobs import PATIENCE, Jobs
from tests.slurm.project import Project, end
from tools.self_play_state import differences, fingerprint, kept_twice
from tools.virtual_slurm.system import wait_until

pytest.importorskip("nemo_run", reason="nemo-run is not installed (make install-launch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (make install-self-play)")
pytestmark = pytest.mark.slow

SLURM = {"account": "test", "gpus_per_node": 0, "time": 60, "stop_before_s": 180}
LAUNCH = {"nodes": 1, "ranks_per_node": 1, "code": {"uncommitted": "warn"}, "slurm": SLURM}


def play(folder: Path, jobs: Jobs | None) -> Project:
    """Return a project whose run is a self-play."""
    project = Project(folder, None if jobs is None else jobs.cluster, LAUNCH)
    (folder / "run.yaml").write_text(to_yaml(small_play("r_zero", Path("state/run"), "iterations=1")))
    return project


def test_it_goes_on_elsewhere_and_ends_as_one_left_alone(jobs: Jobs, tmp_path: Path) -> None:
    alone = play(tmp_path / "alone", None)
    assert end(alone.start("--executor", "local")) == 0, alone.shown
    run = play(tmp_path / "slurm", jobs)
    watched = run.start()
    job = run.job
    questions = run.run_folder / "iteration_01" / "questions.jsonl"
    wait_until(questions.exists, "the Solver to have voted", PATIENCE)
    jobs.cluster.power_off(jobs.nodes(job)[0])
    assert end(watched) == 0, run.shown
    assert jobs.history(job) == ["NODE_FAIL", "COMPLETED"]
    assert differences(fingerprint(alone.run_folder), fingerprint(run.run_folder)) == []
    assert kept_twice(run.run_folder) == 0
    assert run.status["state"] == "finished"
