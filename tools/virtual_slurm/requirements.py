"""What this machine lacks for a virtual cluster. Nothing is ever installed from here."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.virtual_slurm.settings import Settings

#: Program to its Debian package.
PROGRAMS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
}
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
NAMESPACES = "ip link add br0 type bridge && ip link add veth0 type veth peer name veth1"


def missing(settings: Settings) -> str:
    """Say in one line what is missing and how to get it; an empty string when the cluster can run."""
    return "; ".join(_missing(settings))


def _missing(settings: Settings) -> Iterator[str]:
    programs = PROGRAMS | (ACCOUNTING_PROGRAMS if settings.accounting else {})
    packages = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if settings.accounting and not _plugin("accounting_storage_mysql.so"):
        packages.append("slurm-wlm-mysql-plugin")
    if settings.pyxis:
        packages += [] if shutil.which("gcc") else ["gcc"]
        packages += [] if Path("/usr/include/slurm/spank.h").exists() else ["libslurm-dev"]
    if os.geteuid() != 0:
        yield "needs root"
    if packages:
        yield f"needs Slurm's programs: apt-get install {' '.join(packages)} (make install-slurm)"
    elif os.geteuid() == 0:
        yield from _no_namespaces()


def _plugin(name: str) -> bool:
    return any(Path("/usr/lib").glob(f"*/slurm*/{name}")) or any(Path("/usr/lib64/slurm").glob(name))


def _no_namespaces() -> Iterator[str]:
    """Try, in namespaces that vanish with the process, what every cluster needs."""
    command = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "sh", "-c", NAMESPACES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        yield f"needs network, UTS, PID and mount namespaces: {done.stderr.strip()}"
