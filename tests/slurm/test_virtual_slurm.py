"""The virtual cluster behaves as a cluster: nodes apart, power cuts, pulled cables, requeues, accounts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.jobs import PATIENCE, Jobs, wait_for_text
from tools.virtual_slurm import Cluster, VirtualSlurmError
from tools.virtual_slurm.network import existing
from tools.virtual_slurm.system import wait_until

SHOW = "echo $(hostname) $(hostname -i) $(readlink /proc/self/ns/pid /proc/self/ns/net)"


def test_nodes_have_names_addresses_processes_and_networks_of_their_own(slurm: Cluster) -> None:
    lines = [line.split() for line in slurm.run("srun", "-N3", "bash", "-c", SHOW).splitlines()]
    assert sorted(line[1] for line in lines) == [slurm.settings.address(node) for node in (1, 2, 3)]
    assert all(len(set(column)) == 3 for column in zip(*lines, strict=True))


def test_each_task_gets_its_own_gpus(slurm: Cluster) -> None:
    command = ["srun", "-n2", "--gpus-per-task=1", "printenv", "CUDA_VISIBLE_DEVICES"]
    assert sorted(slurm.run(*command).split()) == ["0", "1"]


def test_a_failed_job_and_its_status_are_in_the_accounts(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.submit("-N2", script="srun true; exit 3", folder=tmp_path)
    assert jobs.wait(job, "FAILED", "COMPLETED") == "FAILED"
    assert jobs.exit_status(job) == "3:0"
    assert jobs.history(job) == ["FAILED"]


def test_a_job_that_loses_a_node_starts_again_elsewhere(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.submit(
        "-N3",
        "--exclusive",
        script='echo "run ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NUM_NODES" >> runs\n'
        """[ -n "$SLURM_RESTART_COUNT" ] || srun sh -c 'touch "task$SLURM_PROCID"; sleep 300'""",
        folder=tmp_path,
    )
    # A step that cannot start on a node ends the script by itself, as a failed job.
    wait_until(lambda: len(list(tmp_path.glob("task*"))) == 3, "three tasks to have started", PATIENCE)
    lost = jobs.nodes(job)[1]
    jobs.cluster.power_off(lost)
    assert jobs.wait(job, "COMPLETED", "FAILED", "NODE_FAIL") == "COMPLETED"
    assert (tmp_path / "runs").read_text() == "run 0 on 3\nrun 1 on 3\n"
    assert jobs.history(job)[0] == "NODE_FAIL"
    assert not jobs.cluster.ready([lost])
    jobs.cluster.power_on(lost)
    assert jobs.cluster.run("srun", "-w", f"node{lost}", "hostname") == f"node{lost}"


def test_a_pulled_cable_cuts_a_node_off_but_its_processes_run_on(jobs: Jobs, tmp_path: Path) -> None:
    beat = "while sleep 0.2; do date +%s.%N > beat; done"
    job = jobs.submit("-N1", script=beat, folder=tmp_path)
    wait_for_text(tmp_path / "beat", ".")
    (node,) = jobs.nodes(job)
    probe = ["bash", "-c", f"exec 3<>/dev/tcp/node{node}/6818"]
    jobs.cluster.run(*probe)
    jobs.cluster.unplug(node)
    with pytest.raises(subprocess.TimeoutExpired):
        jobs.cluster.run(*probe, seconds=2)
    (tmp_path / "beat").unlink()
    wait_for_text(tmp_path / "beat", ".")
    jobs.cluster.plug(node)
    jobs.cluster.run(*probe)


def test_container_flags_mount_folders_for_the_task_only(slurm: Cluster, tmp_path: Path) -> None:
    if not slurm.settings.pyxis:
        pytest.skip("needs gcc and Slurm's headers: apt-get install gcc libslurm-dev")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("content")
    target = tmp_path / "inside"
    flags = ["--container-image=image:1", f"--container-mounts={tmp_path / 'data'}:{target}:ro"]
    script = "cat x; echo; echo $PYXIS_STAND_IN_IMAGE; touch y || echo read-only"
    shown = slurm.run("srun", *flags, f"--container-workdir={target}", "bash", "-c", script)
    assert shown.split() == ["content", "image:1", "read-only"]
    assert not list(target.iterdir())


def test_a_cluster_whose_owner_was_killed_is_found_and_removed(slurm: Cluster) -> None:
    name = f"{slurm.settings.name}b"
    owner = (
        "import os; from tools.virtual_slurm import *\n"
        f"with Cluster(Settings(name={name!r}, nodes=1, accounting=False)).running(): os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", owner], cwd=REPOSITORY)
    assert ended.returncode == -9 and len(existing(name)) == 2
    (leftover,) = [one for one in Cluster.leftovers() if one.settings.name == name]
    assert leftover.run("srun", "hostname") == "node1"
    with pytest.raises(VirtualSlurmError, match=f"--name {name} down"):
        leftover.up()
    leftover.down()
    leftover.down()
    assert not existing(name) and not leftover.settings.folder.exists()
    assert slurm.run("srun", "hostname").startswith("node")
