"""What of the virtual cluster needs neither root nor Slurm; the cluster itself runs in tests/slurm."""

import os
import tempfile
from pathlib import Path

import pytest

from tools.virtual_slurm import Cluster, Settings, VirtualSlurmError, files, missing
from tools.virtual_slurm.__main__ import arguments, main
from tools.virtual_slurm.network import existing, namespace
from tools.virtual_slurm.settings import load, saved
from tools.virtual_slurm.system import call, start_time, wait_until


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep these tests apart from clusters that run on the machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "a-b"}, "'a-b'"),
        ({"name": ""}, "letters"),
        ({"nodes": 0}, "nodes=0"),
        ({"nodes": 300}, "200"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(VirtualSlurmError, match=told):
        Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("node", [0, 4, -1])
def test_only_nodes_that_exist_can_be_named(node: int) -> None:
    with pytest.raises(VirtualSlurmError, match="node 1 to 3"):
        Cluster(Settings(nodes=3)).power_off(node)


def test_saved_settings_are_found_by_name() -> None:
    settings = Settings(name="one", nodes=7, pyxis=True)
    settings.folder.mkdir()
    settings.save()
    assert saved() == [settings] == [load("one")]
    with pytest.raises(VirtualSlurmError, match="--name two up"):
        load("two")


def test_a_cluster_is_left_over_when_its_owner_is_gone_or_another_process_has_its_number() -> None:
    mine = {"owner": os.getpid(), "owner_started": start_time(os.getpid())}
    owners = {"mine": mine, "nobody": {}, "reused": {**mine, "owner_started": 1}, "gone": {"owner": 2**30}}
    for name, owner in owners.items():
        settings = Settings(name=name, **{"owner_started": 5, **owner})
        settings.folder.mkdir()
        settings.save()
    assert [one.settings.name for one in Cluster.leftovers()] == ["gone", "reused"]


def test_missing_programs_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing(Settings(pyxis=True)).startswith("needs root; needs Slurm's programs: apt-get install ")
    assert {"slurmctld", "mariadb-server", "munge", "gcc"} <= set(missing(Settings(pyxis=True)).split())
    assert "mariadb" not in missing(Settings(accounting=False))
    assert main(["--name", "x", "up"]) == 2
    assert "make install-slurm" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_configuration_has_every_node_and_no_open_placeholder() -> None:
    settings = Settings(name="conf", nodes=3, slurmd_timeout=17, grace_time=23)
    settings.folder.mkdir()
    files.write(settings)
    text = settings.slurm_conf.read_text()
    assert "$" not in text + (settings.folder / "etc/slurmdbd.conf").read_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("NodeName=")] == [
        f"NodeAddr=198.18.0.{11 + node}" for node in range(3)
    ]
    assert "SlurmdTimeout=17\n" in text and "GraceTime=23\n" in text and "slurmdbd" in text
    for secret in ("etc/slurmdbd.conf", "munge/key"):
        assert (settings.folder / secret).stat().st_mode & 0o077 == 0


def test_without_accounting_slurm_knows_no_daemon_for_it() -> None:
    settings = Settings(name="conf", accounting=False)
    settings.folder.mkdir()
    files.write(settings)
    assert "Accounting" not in settings.slurm_conf.read_text()
    assert not (settings.folder / "etc/slurmdbd.conf").exists()


def test_the_command_line_sets_sizes_and_passes_a_command_on_unread() -> None:
    up = arguments(["--name", "x", "up", "--nodes", "9", "--slurmd-timeout", "5", "--no-accounting"])
    assert (up.name, up.nodes, up.slurmd_timeout, up.accounting, up.pyxis) == ("x", 9, 5, False, False)
    assert arguments(["run", "srun", "-N2", "--help"]).command == ["srun", "-N2", "--help"]
    assert main(["power-off", "1"]) == 2


def test_a_failing_command_tells_its_words_status_and_output() -> None:
    with pytest.raises(VirtualSlurmError, match=r"status 3 from: sh -c echo so; exit 3\nso"):
        call("sh", "-c", "echo so; exit 3")
    with pytest.raises(VirtualSlurmError, match="no program 'absent'"):
        call("absent")
    with pytest.raises(VirtualSlurmError, match="in vain for rain"):
        wait_until(lambda: False, "rain", 0)


def test_namespaces_of_one_cluster_are_not_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [namespace("a", 0), namespace("a", 12), namespace("ab", 1), "other"]
    listed = "".join(f"{name} (id: 3)\n" for name in names)
    monkeypatch.setattr("tools.virtual_slurm.network.call", lambda *command: listed)
    assert existing("a") == names[:2]
