"""The namespaces of a cluster: the controller's with a bridge, and one for each node, plugged in."""

import shutil
from pathlib import Path

from tools.virtual_slurm.settings import CONTROLLER, Settings
from tools.virtual_slurm.system import call, kill_all, wait_until

# `ip netns exec` shows the files of this folder as those of /etc.
ETC = Path("/etc/netns")
NSSWITCH = "hosts: files\npasswd: files\ngroup: files\nshadow: files\n"  # no look-ups on any network


def namespace(name: str, node: int = 0) -> str:
    """Return the name of a node's network namespace, the controller's for node 0."""
    return f"vs-{name}-n{node}"


def existing(name: str) -> list[str]:
    """Return the network namespaces of the cluster of this name that exist, left over or in use."""
    words = [line.split()[0] for line in call("ip", "netns", "list").splitlines() if line]
    return [word for word in words if word.startswith(namespace(name, 0)[:-1])]


def create(settings: Settings) -> None:
    """Make all namespaces, the controller's bridge and a cable to every node."""
    controller = _create_namespace(settings, 0)
    call("ip", "-n", controller, "link", "add", "br0", "type", "bridge")
    call("ip", "-n", controller, "addr", "add", f"{CONTROLLER}/24", "dev", "br0")
    call("ip", "-n", controller, "link", "set", "br0", "up")
    for node in range(1, settings.nodes + 1):
        _plug_in(settings, node, controller)


def _create_namespace(settings: Settings, node: int) -> str:
    name = namespace(settings.name, node)
    call("ip", "netns", "add", name)
    call("ip", "-n", name, "link", "set", "lo", "up")
    hosts = {"127.0.0.1": "localhost", CONTROLLER: "ctl"}
    hosts |= {settings.address(other): f"node{other}" for other in range(1, settings.nodes + 1)}
    (ETC / name).mkdir(parents=True, exist_ok=True)
    (ETC / name / "hosts").write_text("".join(f"{where} {who}\n" for where, who in hosts.items()))
    (ETC / name / "nsswitch.conf").write_text(NSSWITCH)
    return name


def _plug_in(settings: Settings, node: int, controller: str) -> None:
    name, cable = _create_namespace(settings, node), f"v{node}"
    call("ip", "-n", controller, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    call("ip", "-n", controller, "link", "set", cable, "master", "br0", "up")
    call("ip", "-n", name, "addr", "add", f"{settings.address(node)}/24", "dev", "eth0")
    call("ip", "-n", name, "link", "set", "eth0", "up")


def set_cable(settings: Settings, node: int, state: str) -> None:
    """Plug a node's cable in (``up``) or pull it (``down``)."""
    settings.check_node(node)
    call("ip", "-n", namespace(settings.name), "link", "set", f"v{node}", state)


def processes(name: str) -> list[int]:
    """Return the processes in a network namespace."""
    return [int(word) for word in call("ip", "netns", "pids", name).split()]


def kill_processes(name: str) -> None:
    """Kill all processes in a network namespace and wait until they are gone."""

    def killed() -> bool:
        kill_all(processes(name))
        return not processes(name)

    wait_until(killed, f"the end of the processes in namespace {name}", 20)


def remove(name: str) -> None:
    """End everything in a network namespace and remove it."""
    kill_processes(name)
    call("ip", "netns", "delete", name)
    shutil.rmtree(ETC / name, ignore_errors=True)
