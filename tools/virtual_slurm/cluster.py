"""A virtual cluster as one object: up, down, run, and the faults."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tools.virtual_slurm import daemons, files, network, requirements
from tools.virtual_slurm.settings import Settings, VirtualSlurmError, load, saved
from tools.virtual_slurm.system import start_time, wait_until

#: States of a node that takes jobs, as sinfo writes them: "idle*" would be one that does not answer.
_READY = {"idle", "mix", "alloc", "comp"}


class Cluster:
    """A cluster that is up, or is to be brought up."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def named(cls, name: str) -> "Cluster":
        """Return a cluster that is up.

        Raises:
            VirtualSlurmError: when there is none of this name.
        """
        return cls(load(name))

    @classmethod
    def leftovers(cls) -> "list[Cluster]":
        """Return the clusters whose owner is gone."""
        owned = [settings for settings in saved() if settings.owner]
        return [cls(one) for one in owned if start_time(one.owner) != one.owner_started]

    def up(self) -> None:
        """Start the cluster and wait until all nodes are idle; take it down again when that fails.

        Raises:
            VirtualSlurmError: when something is missing on this machine, or a cluster of this name exists.
        """
        lacking = requirements.missing(self.settings)
        if lacking:
            raise VirtualSlurmError(lacking)
        try:
            self.settings.folder.mkdir()
        except FileExistsError:
            name = self.settings.name
            remedy = f"python -m tools.virtual_slurm --name {name} down"
            raise VirtualSlurmError(f"cluster {name!r} is up already, or left over: {remedy}") from None
        try:
            self._start()
        except BaseException:  # an interrupt too must leave nothing behind
            self.down()
            raise

    def _start(self) -> None:
        self.settings.folder.chmod(0o755)
        self.settings.save()
        files.write(self.settings)
        network.create(self.settings)
        daemons.start_munge(self.settings)
        if self.settings.accounting:
            daemons.start_accounting(self.settings)
        daemons.start_controller(self.settings)
        self.power_on(*range(1, self.settings.nodes + 1))

    def down(self) -> None:
        """End all processes of the cluster and remove what it left; harmless when there is nothing."""
        for name in network.existing(self.settings.name):
            network.remove(name)
        shutil.rmtree(self.settings.folder, ignore_errors=True)

    @contextmanager
    def running(self) -> Iterator["Cluster"]:
        """Keep the cluster up for a ``with`` block of this process."""
        owner = os.getpid()
        own = Cluster(replace(self.settings, owner=owner, owner_started=start_time(owner)))
        own.up()
        try:
            yield own
        finally:
            own.down()

    def command(self, *command: str | Path) -> list[str]:
        """Return the command line that runs ``command`` on the login node."""
        return daemons.on_controller(self.settings, *command)

    def run(self, *command: str | Path, folder: Path | None = None, seconds: float = 60) -> str:
        """Run a command on the login node, in ``folder``, and return what it printed, less its last newline.

        Raises:
            VirtualSlurmError: when it fails.
            subprocess.TimeoutExpired: when it takes longer than ``seconds``.
        """
        line = self.command(*command)
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            words = " ".join(map(str, command))
            raise VirtualSlurmError(f"status {done.returncode} from: {words}\n{done.stdout}{done.stderr}")
        return done.stdout.rstrip()

    def power_off(self, *nodes: int) -> None:
        """Cut the power of nodes: all their processes die at once, and nobody is told."""
        for node in nodes:
            self.unplug(
                node
            )  # else the kernel would close the connections of the dead, which tells the others
            network.kill_processes(network.namespace(self.settings.name, node))

    def power_on(self, *nodes: int, seconds: float = 90) -> None:
        """Start nodes and wait until Slurm would use them."""
        for node in nodes:
            self.plug(node)
            daemons.start_node(self.settings, node)
        wait_until(lambda: self.ready(nodes), f"nodes {list(nodes)} to be ready", seconds)

    def ready(self, nodes: Iterable[int]) -> bool:
        """Whether Slurm says of all these nodes that they are up."""
        words = [line.split() for line in self.run("sinfo", "-hNp", "batch", "-o", "%N %t").splitlines()]
        up = {name for name, state in words if state in _READY}
        return up.issuperset(f"node{node}" for node in nodes)

    def powered(self, node: int) -> bool:
        """Whether a node is switched on."""
        self.settings.check_node(node)
        return bool(network.processes(network.namespace(self.settings.name, node)))

    def plug(self, node: int) -> None:
        """Plug a node's network cable in again."""
        network.set_cable(self.settings, node, "up")

    def unplug(self, node: int) -> None:
        """Pull a node's network cable: its processes run on, unheard."""
        network.set_cable(self.settings, node, "down")
