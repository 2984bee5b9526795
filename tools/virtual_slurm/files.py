"""The cluster's folder: configuration made from templates, device files, the compiled plugin."""

import os
import stat
from pathlib import Path
from string import Template

from tools.virtual_slurm.settings import CONTROLLER, Settings
from tools.virtual_slurm.system import call

HERE = Path(__file__).parent
FOLDERS = ("etc", "log", "run", "state", "munge", "devices", "database")
DATABASE_PORT = 13306


def write(settings: Settings) -> None:
    """Fill the cluster's folder, which exists and holds nothing but the settings."""
    for name in FOLDERS:
        (settings.folder / name).mkdir()
    key = settings.folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(stat.S_IRUSR)
    etc = settings.folder / "etc"
    (etc / "slurm.conf").write_text(_slurm_conf(settings))
    # Nothing uses cgroups, but slurmd ends at once where it finds none and no version is named.
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (etc / "gres.conf").write_text(_gres_conf(settings))
    (etc / "plugstack.conf").write_text(_plugstack_conf(settings))
    if settings.accounting:
        _write_secret(etc / "slurmdbd.conf", _render("slurmdbd.conf", settings))


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)  # slurmdbd refuses a file that others can read
    path.write_text(text)


def _render(template: str, settings: Settings, **more: object) -> str:
    text = Template((HERE / "templates" / template).read_text())
    return text.substitute(
        vars(settings),
        folder=settings.folder,
        controller=CONTROLLER,
        munge_socket=settings.munge_socket,
        database_port=DATABASE_PORT,
        **more,
    )


def _slurm_conf(settings: Settings) -> str:
    gpus = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    size = f"CPUs={settings.cpus} RealMemory={settings.memory_mb}{gpus} State=UNKNOWN"
    nodes = "\n".join(
        f"NodeName=node{node} NodeAddr={settings.address(node)} NodeHostname=node{node} {size}"
        for node in range(1, settings.nodes + 1)
    )
    accounting = _render("accounting.conf", settings) if settings.accounting else ""
    return _render("slurm.conf", settings, node_lines=nodes, accounting_lines=accounting)


def _gres_conf(settings: Settings) -> str:
    """One empty device (a second /dev/null) for each GPU, so that Slurm counts and hands out GPUs."""
    lines = ["AutoDetect=off"]
    for gpu in range(settings.gpus):
        device = settings.folder / f"devices/gpu{gpu}"
        os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/null").st_rdev)
        lines.append(f"Name=gpu File={device}")
    return "\n".join(lines) + "\n"


def _plugstack_conf(settings: Settings) -> str:
    if not settings.pyxis:
        return ""
    plugin = settings.folder / "etc/pyxis_stand_in.so"
    call("gcc", "-Wall", "-shared", "-fPIC", "-o", plugin, HERE / "pyxis_stand_in.c")
    return f"required {plugin}\n"
