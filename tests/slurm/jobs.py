"""Submit jobs to the tests' cluster, follow them, and break nodes."""

import re
import signal
from pathlib import Path

from tools.virtual_slurm import Cluster
from tools.virtual_slurm.system import wait_until

PATIENCE = 300.0


class Jobs:
    """The jobs on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def submit(self, *options: str | Path, script: str, folder: Path) -> str:
        """Submit a shell script with sbatch's ``options``, to run in ``folder``; return its job id."""
        path = folder / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        return self.cluster.run("sbatch", "--parsable", "--open-mode=append", *options, path, folder=folder)

    def state(self, job: str) -> str:
        """Return the true state of a job: squeue's while it is there, then sacct's, without "by USER"."""
        listed = self.cluster.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T")
        return listed or self.cluster.run("sacct", "-XnP", "-j", job, "-o", "State").split()[0]

    def wait(self, job: str, *states: str, seconds: float = PATIENCE) -> str:
        """Wait until the job is in one of these states, and return that."""
        wait_until(lambda: self.state(job) in states, f"job {job} to be {' or '.join(states)}", seconds)
        return self.state(job)

    def nodes(self, job: str) -> list[int]:
        """Return the numbers of a running job's nodes, the batch script's first."""
        listed = self.cluster.run("squeue", "-h", "-j", job, "-o", "%N")
        return [int(name.removeprefix("node")) for name in self.hostnames(listed)]

    def hostnames(self, listed: str) -> list[str]:
        """Write out Slurm's short form of a list of nodes, such as ``node[1-3]``."""
        return self.cluster.run("scontrol", "show", "hostnames", listed).split()

    def history(self, job: str) -> list[str]:
        """Return the states of all runs of a job, in order, as sacct knows them."""
        lines = self.cluster.run("sacct", "-XnPD", "-j", job, "-o", "State").splitlines()
        return [line.split()[0] for line in lines]

    def leave_minutes(self, job: str, minutes: int) -> None:
        """Lower a running job's time limit: it has this time left, or up to a minute more."""
        elapsed = self.cluster.run("squeue", "-h", "-j", job, "-o", "%M")
        passed = int(elapsed.split(":")[-2])
        self.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={passed + 1 + minutes}")

    def wait_for_signal(self, job: str, number: signal.Signals) -> None:
        """Wait until the controller has sent a signal to the job's steps."""
        log = self.cluster.settings.folder / "log/slurmctld.log"
        wait_for_text(log, f"job_signal: {int(number)} of running JobId={job} successful")

    def exit_status(self, job: str) -> str:
        """Return ``STATUS:SIGNAL`` of a job that has ended."""
        text = self.cluster.run("scontrol", "show", "job", job)
        return re.findall(r"\bExitCode=(\S+)", text)[0]

    def cancel_all(self) -> None:
        """End all jobs and wait until none is left."""
        self.cluster.run("scancel", "--user=root")
        wait_until(lambda: not self.cluster.run("squeue", "-h"), "all jobs to end", PATIENCE)

    def all_nodes_up(self) -> None:
        """Switch on the nodes that are off, and plug in every cable."""
        nodes = range(1, self.cluster.settings.nodes + 1)
        for node in nodes:
            self.cluster.plug(node)
        self.cluster.power_on(*(node for node in nodes if not self.cluster.powered(node)))
        wait_until(lambda: self.cluster.ready(nodes), "all nodes to be up", PATIENCE)


def wait_for_text(path: Path, text: str, seconds: float = PATIENCE) -> None:
    """Wait until a file exists and contains a text."""
    wait_until(lambda: path.is_file() and text in path.read_text(), f"{text!r} in {path.name}", seconds)
