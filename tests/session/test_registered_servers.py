"""A run on registered servers that are lost and come back: ``megatron-srpo serve`` and training, for real."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.config.loader import to_yaml
from megatron_srpo.config.run import RunConfig
from megatron_srpo.rollout.sglang.registry import Registry
from tests.ranks import run_ranks
from tests.rollout.sglang.test_watch import wait_until
from tests.session.test_loop import rows_of, small_config
from tests.session.test_sglang_runs import PROMPTS, SAMPLES, _train, disturb_sampling
from tests.sglang_servers import ROOT, require_sglang

#: A launcher's shell, under which SIGTERM and SIGUSR1 are ignored from the beginning.
SHELL = ["sh", "-c", "trap '' TERM USR1; exec \"$@\"", "sh"]


class Cluster:
    """Does what a launcher does: starts ``serve`` per machine, empties the slot of one that is gone, and
    starts another one in slot 1 when both are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, Registry(folder / "servers")
        config = config_for(folder, "serving")
        (folder / "serve.yaml").write_text(to_yaml(config))
        self.machines: dict[int, subprocess.Popen[bytes]] = {}
        self.replaced = False
        self._stop = threading.Event()
        self._monitor = threading.Thread(target=self._watch)

    def start(self, slot: int) -> None:
        command = [sys.executable, "-m", "megatron_srpo.cli", "serve", "--config", "serve.yaml"]
        command += ["--register", "servers", f"--slot={slot}", "--host=127.0.0.1"]
        with (self.folder / f"serve-{slot}.log").open("ab") as log:
            self.machines[slot] = subprocess.Popen(
                [*SHELL, *command],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        (self.folder / f"machine-{slot}").write_text(str(self.machines[slot].pid))

    def family(self, slot: int) -> list[psutil.Process]:
        main = psutil.Process(self.machines[slot].pid)
        return [main, *main.children(recursive=True)]

    def said(self, slot: int) -> str:
        return (self.folder / f"serve-{slot}.log").read_text()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for slot, machine in list(self.machines.items()):
                if machine.poll() is not None:
                    del self.machines[slot]
                    (self.folder / "servers" / f"server-{slot:03d}.json").unlink(missing_ok=True)
            if not self.machines and not self.replaced:
                self.replaced = True
                self.start(1)

    def __enter__(self) -> "Cluster":
        for slot in (0, 1):
            self.start(slot)
        self._monitor.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._monitor.join()
        for slot, machine in self.machines.items():
            for process in self.family(slot) if machine.poll() is None else ():
                process.kill()


def config_for(folder: Path, name: str) -> RunConfig:
    return small_config(
        folder / name,
        "rollout.engine=sglang",
        f"rollout.sglang.registry={folder}/servers",
        "rollout.sglang.servers=2",
        "rollout.sync.timeout_s=120",
        "training.steps=4",
        "parallel.tensor=1",
    )


def switch_off(folder: Path, slot: int) -> str:
    """Kill every process of a machine, its ``serve`` among them, as a loss of power would."""
    main = psutil.Process(int((folder / f"machine-{slot}").read_text()))
    family = [main, *main.children(recursive=True)]
    for process in family:
        process.kill()
    assert len(family) >= 4, "serve, a main process, a scheduler and a detokenizer"
    return f"machine {slot} is off"


def train(rank: int, world: int, config: RunConfig, folder: Path, faults: bool) -> Any:
    done: list[str] = []
    lines: list[str] = []

    def prepare(run: Any) -> None:
        if rank == 0:
            run.parts.publisher._fleet.report = lines.append
            if faults:
                disturb_sampling(
                    run, done, {1: lambda _: switch_off(folder, 1), 2: lambda _: switch_off(folder, 0)}
                )

    return _train(config, prepare), done, lines


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_sglang()
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_run_outlives_the_machines_of_its_servers(cluster: Cluster) -> None:
    """The first machine is lost while the second one samples on, then the second one too: the run waits.

    Metrics are those of a run that lost nothing: whoever samples, seeds and weights decide.
    """
    wait_until(lambda: len(cluster.registry.serving()) == 2, "two servers", seconds=500)
    # What Slurm sends to every process of a job before it ends.
    for process in (*cluster.family(0), *cluster.family(1)):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            process.send_signal(number)
    undisturbed, disturbed = (config_for(cluster.folder, name) for name in ("undisturbed", "disturbed"))
    (counts, _, lines), (others, _, _) = run_ranks(2, train, undisturbed, cluster.folder, False, timeout=500)
    assert counts == others == [PROMPTS * SAMPLES // 2] * 4
    assert lines == [], "nobody was lost, and nobody came"

    (counts, done, lines), (others, _, _) = run_ranks(2, train, disturbed, cluster.folder, True, timeout=700)
    assert done == ["machine 1 is off", "machine 0 is off"]
    assert counts == others == [PROMPTS * SAMPLES // 2] * 4, "no prompt is lost"
    told = "\n".join(lines)
    assert "SGLang server 1 at http://127.0.0.1" in lines[0] and "is lost; 1 of 2 are left" in lines[0]
    assert "SGLang server 0 at" in told and "is lost; 0 of 2 are left" in told
    assert "no SGLang server is left; waiting for one to register" in lines
    assert lines[-1].endswith("joins; 1 of 2 servers serve")
    check_same(rows_of(cluster.folder / "undisturbed"), rows_of(cluster.folder / "disturbed"))

    (cluster.folder / "servers" / "close").touch()
    (machine,) = cluster.machines.values()
    assert machine.wait(60) == 0, cluster.said(1)
    assert cluster.said(1).count("SGLang server 1 serves at") == 2, "before and after the loss"


def check_same(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    assert len(expected) == len(found) == 4
    for one, other in zip(expected, found, strict=True):
        # Engines differ by the rounding of sums in another order, publications by who came and went.
        names = {name for name in one.keys() | other.keys() if not name.startswith(("engine/", "sync/"))}
        for name in names:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
        assert other["engine/logprob_diff_max"] < 1e-4, "sampled from the weights that train"
