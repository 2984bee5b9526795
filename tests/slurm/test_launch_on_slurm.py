"""Runs launched on a real Slurm, through all that ends jobs: nothing is lost, nothing is said wrongly."""

import signal
from pathlib import Path

import pytest

from tests.sglang_servers import require_sglang
from tests.slurm.jobs import Jobs, wait_for_text
from tests.slurm.project import PROMPTS, SAMPLES, Project, end
from tools.virtual_slurm.system import wait_until

pytest.importorskip("nemo_run", reason="nemo-run is not installed (make install-launch)")

LONG = 60  # minutes
SLURM = {"account": "test", "gpus_per_node": 0, "time": LONG, "stop_before_s": 180}
TWO_NODES = {"nodes": 2, "ranks_per_node": 1}
ONE_NODE = {"nodes": 1, "ranks_per_node": 1, "slurm": SLURM}


@pytest.mark.slow
def test_time_limit_preemption_and_a_lost_node_change_no_metric(jobs: Jobs, tmp_path: Path) -> None:
    steps = "training.steps=9"
    local = Project(tmp_path / "local", None, {"nodes": 1, "ranks_per_node": 2}, steps)
    undisturbed = local.start("--executor", "local")
    launch = {**TWO_NODES, "slurm": {**SLURM, "partition": "spot"}}
    run = Project(tmp_path / "slurm", jobs.cluster, launch, steps)
    watched = run.start()
    job = run.job
    run.advance(2)

    jobs.leave_minutes(job, 2)
    jobs.wait_for_signal(job, signal.SIGUSR1)
    run.release()
    jobs.wait(job, "PENDING")
    jobs.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={LONG}")
    run.advance()
    assert run.status["attempt"] == 2

    nodes = ",".join(f"node{node}" for node in jobs.nodes(job))
    urgent = ["--partition=urgent", "--exclusive", f"--nodelist={nodes}"]
    jobs.submit(*urgent, script="sleep 1", folder=tmp_path)
    jobs.wait_for_signal(job, signal.SIGTERM)
    run.release()
    jobs.wait(job, "PENDING")
    run.advance()
    assert run.status["attempt"] == 3

    jobs.cluster.power_off(jobs.nodes(job)[1])
    run.release()
    assert end(watched) == 0, run.shown
    assert run.status["state"] == "finished" and run.status["attempt"] == 4
    assert jobs.history(job) == ["REQUEUED", "REQUEUED", "NODE_FAIL", "COMPLETED"]
    assert end(undisturbed) == 0, local.shown
    assert [row["step"] for row in local.rows] == list(range(1, 10))
    assert run.rows == local.rows


@pytest.mark.slow
def test_servers_and_ranks_lose_nodes_and_no_prompt(jobs: Jobs, tmp_path: Path) -> None:
    require_sglang()
    steps = 7
    launch = {**TWO_NODES, "rollout_nodes": 2, "slurm": SLURM}
    changes = [f"training.steps={steps}", "rollout.engine=sglang", "rollout.sync.timeout_s=60"]
    run = Project(tmp_path, jobs.cluster, launch, *changes)
    watched = run.start()
    job = run.job
    run.advance()
    first, _, _, server = jobs.nodes(job)

    jobs.cluster.power_off(server)
    run.advance()
    wait_until(lambda: server not in jobs.nodes(job), "Slurm to miss the node", 120)
    run.advance()
    replacement = wait_for_replacement(run)
    run.advance(2)
    ranks = (run.run_folder / "launch" / "logs" / f"log-ranks_{job}_0.out").read_text()
    assert "is lost; 1 of 2 are left" in ranks and "joins; 2 of 2 servers serve" in ranks
    assert jobs.state(replacement) == "RUNNING" and run.status["attempt"] == 1
    jobs.cluster.power_on(server)

    jobs.cluster.power_off(first)
    wait_until(lambda: f"slice {job}_1 on" in batch_log(run), "the requeue", 300)
    run.release()
    assert end(watched) == 0, run.shown
    assert run.status["state"] == "finished" and run.status["attempt"] == 2
    assert [row["step"] for row in run.rows] == list(range(1, steps + 1))
    assert all(run.scored[prompt] >= SAMPLES for prompt in range(steps * PROMPTS))
    assert jobs.state(replacement) in ("COMPLETED", "CANCELLED")


def wait_for_replacement(run: Project) -> str:
    """Wait for the server of a lost node to register again; return the job that it runs in."""
    launch = run.run_folder / "launch"
    wait_for_text(launch / "replacements", "\n")
    replacement = (launch / "replacements").read_text().split()[0]
    wait_for_text(launch / "servers" / "server-001.json", f'"job": "{replacement}_')
    return replacement


def batch_log(run: Project) -> str:
    return "".join(path.read_text() for path in (run.run_folder / "launch" / "logs").glob("sbatch*"))


def test_a_run_that_fails_is_seen_to_fail(jobs: Jobs, tmp_path: Path) -> None:
    absent = "data.train=[{kind: jsonl, path: absent.jsonl, task: exact}]"
    run = Project(tmp_path, jobs.cluster, ONE_NODE, absent)
    assert end(run.start()) == 1, run.shown
    assert "absent.jsonl" in run.shown
    assert jobs.state(run.job) == "FAILED"
    assert run.call("status", "state/run").returncode == 1


@pytest.mark.slow
def test_a_cut_off_node_writes_no_more_and_a_cancelled_run_stays_so(jobs: Jobs, tmp_path: Path) -> None:
    run = Project(tmp_path, jobs.cluster, ONE_NODE, "training.steps=400", "checkpoint.every=1")
    assert run.call("launch", "--config", "run.yaml", "--launch", "cluster.yaml", "--detach").returncode == 0
    job = run.job
    run.advance(2)
    (node,) = jobs.nodes(job)
    jobs.cluster.unplug(node)
    wait_until(lambda: run.status["attempt"] == 2, "a start on another node", 400)
    run.advance(2)
    assert node not in jobs.nodes(job)
    wait_for_text(
        run.run_folder / "launch" / "logs" / f"log-ranks_{job}_0.out", "was taken over by another process"
    )
    steps = [row["step"] for row in run.rows]
    assert steps == list(range(1, len(steps) + 1))

    cancelled = run.call("cancel", "state/run")
    assert cancelled.returncode == 0 and "CANCELLED" in cancelled.stdout
    assert jobs.history(job) == ["NODE_FAIL", "CANCELLED"]
    assert run.call("attach", "state/run").returncode not in (0, 75)
