"""The command line: `python -m tools.virtual_slurm --help`."""

import argparse
import os
import sys
from dataclasses import fields

from tools.virtual_slurm.cluster import Cluster
from tools.virtual_slurm.settings import Settings, VirtualSlurmError

SIZES = ("nodes", "cpus", "memory_mb", "gpus", "slurmd_timeout", "kill_wait", "grace_time", "requeue_delay")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.virtual_slurm", description="A Slurm cluster on one machine."
    )
    parser.add_argument("--name", default="default", help="tells clusters apart (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", required=True)
    _add_up(actions.add_parser("up", help="start a cluster; it runs until `down`"))
    actions.add_parser("down", help="end it and remove what it left, also after a crash")
    run = actions.add_parser("run", help="run a command on the login node")
    run.add_argument("command", nargs=argparse.REMAINDER)
    for action, text in (("power-off", "cut the power of a node"), ("power-on", "start it again")):
        actions.add_parser(action, help=text).add_argument("node", type=int)
    cable = actions.add_parser("cable", help="pull a node's network cable, or plug it in")
    cable.add_argument("node", type=int)
    cable.add_argument("state", choices=("up", "down"))
    return parser.parse_args(argv)


def _add_up(parser: argparse.ArgumentParser) -> None:
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in SIZES:
        text = "(default: %(default)s)"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=defaults[name], help=text)
    parser.add_argument("--pyxis", action="store_true", help="accept srun's --container-... flags")
    parser.add_argument(
        "--no-accounting", dest="accounting", action="store_false", help="no slurmdbd, no sacct"
    )


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks; 2 for a user's error."""
    given = arguments(argv)
    try:
        act(given)
    except VirtualSlurmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def act(given: argparse.Namespace) -> None:
    """Do what was asked."""
    if given.action == "up":
        size = {name: vars(given)[name] for name in (*SIZES, "pyxis", "accounting")}
        cluster = Cluster(Settings(name=given.name, **size))
        cluster.up()
        print(cluster.run("sinfo"))
    elif given.action == "down":
        Cluster(Settings(name=given.name)).down()
    elif given.action == "run":
        line = Cluster.named(given.name).command(*given.command)
        os.execvp(line[0], line)
    else:
        _fault(Cluster.named(given.name), given)


def _fault(cluster: Cluster, given: argparse.Namespace) -> None:
    if given.action == "power-off":
        cluster.power_off(given.node)
    elif given.action == "power-on":
        cluster.power_on(given.node)
    elif given.state == "up":
        cluster.plug(given.node)
    else:
        cluster.unplug(given.node)


if __name__ == "__main__":
    sys.exit(main())
