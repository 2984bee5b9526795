"""Runs that are asked to stop, and runs that were taken over: nothing is lost, nothing is written twice."""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.config.loader import to_yaml
from megatron_srpo.config.run import RunConfig
from megatron_srpo.session.status import read_status
from megatron_srpo.training.fence import claim
from tests.ranks import run_ranks
from tests.session.test_loop import command, finish, rows_of, small_config, start, train_ranks, wait_for_row

SHORT = ["rollout.prompts_per_step=4", "rollout.max_response_tokens=32", "teacher.ema_rate=0.3"]


def config_for(folder: Path, *overrides: str) -> RunConfig:
    return small_config(folder, *SHORT, *overrides)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on one rank that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_ranks(1, train_ranks, config_for(folder, "training.steps=3", "parallel.tensor=1"), timeout=300)
    return folder


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# -------------------- stopping at a chosen moment, in ranks of the pool


def train_disturbed(rank: int, world: int, config: RunConfig, moment: str, what: str) -> tuple[str, int, int]:
    """Train, and do something to the run at a moment of step 2; return how it ended, step and saved step."""
    from megatron_srpo.errors import FenceError
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    def act() -> None:
        if rank == 0:
            (folder / "stop").touch() if what == "stop" else claim(folder)

    folder = Path(config.output_dir)
    with open_run(config, resume=False) as run:
        disturb(run, moment, act)
        try:
            ending = "finished" if train(run) else "stopped"
        except FenceError as error:
            ending = f"fenced: {error}"
        return ending, run.step, run.saved_step


def disturb(run: Any, moment: str, act: Callable[[], None]) -> None:
    """Have ``act`` called once, at a moment of the second step (or before the first one)."""
    owner, name = {
        "start": (run.parts.publisher, "publish"),
        "generate": (run.parts.sampling, "finish"),
        "update": (run, "update"),
        "record": (run, "record"),
        "saving": (run.trainer.optimizer, "make_state"),
    }[moment]
    original, step = vars(owner).get(name) or type(owner).__dict__[name].__get__(owner), run.step
    done = []

    def disturbed(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        counted = moment in ("record", "saving")  # the second step has ended by then
        if not done and (moment == "start" or run.step == step + (2 if counted else 1)):
            done.append(True)
            act()
        return result

    setattr(owner, name, disturbed)


def go_on(rank: int, world: int, config: RunConfig) -> int:
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=True) as run:
        began = run.step
        assert train(run)
    return began


@pytest.mark.parametrize(
    ("moment", "overrides", "step"),
    [
        ("start", [], 0),
        ("generate", [], 1),
        # The step before is saved already; it is not saved again.
        pytest.param("generate", ["checkpoint.every=1"], 1, marks=pytest.mark.slow),
        ("update", [], 2),
    ],
)
def test_a_stop_file_loses_nothing(
    tmp_path: Path, undisturbed: Path, moment: str, overrides: list[str], step: int
) -> None:
    config = config_for(tmp_path, "training.steps=3", "parallel.tensor=1", *overrides)
    assert run_ranks(1, train_disturbed, config, moment, "stop") == [("stopped", step, step)]
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["steps"]) == ("stopped", step, 3)
    assert status["reason"] == "stopped on request (file 'stop')"
    if step:
        assert checkpoints(tmp_path) == [f"step_{step:08d}"]
    assert run_ranks(1, go_on, config) == [step]
    assert not (tmp_path / "stop").exists()
    assert rows_of(tmp_path) == rows_of(undisturbed)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == (undisturbed / "rollouts.jsonl").read_bytes()
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["attempt"]) == ("finished", 3, 2)


def test_two_ranks_stop_after_the_same_step(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_ranks(2, train_ranks, config_for(whole, "training.steps=3"), timeout=300)
    config = config_for(parts, "training.steps=3")
    assert run_ranks(2, train_disturbed, config, "generate", "stop") == [("stopped", 1, 1)] * 2
    assert run_ranks(2, go_on, config) == [1, 1]
    assert rows_of(parts) == rows_of(whole)


def test_a_request_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    config = config_for(tmp_path, "training.steps=2", "parallel.tensor=1")
    assert run_ranks(1, train_disturbed, config, "update", "stop") == [("finished", 2, 0)]
    assert read_status(tmp_path)["state"] == "finished"


# -------------------- asked to stop while nobody answers


def stop_unpublished(rank: int, world: int, config: RunConfig) -> tuple[bool, int, int]:
    """Ask for a stop while the second step's weights wait for servers that do not come."""
    from megatron_srpo.errors import EngineError
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=False) as run:
        publisher: Any = run.parts.publisher
        publish = publisher.publish

        def wait_in_vain(version: int) -> dict[str, float]:
            if version < 2:
                return publish(version)
            (Path(config.output_dir) / "stop").touch()
            raise EngineError("stop requested while waiting for SGLang servers")

        publisher.publish = wait_in_vain
        return train(run), run.step, run.saved_step


def test_a_step_whose_weights_nobody_took_is_trained_again(tmp_path: Path, undisturbed: Path) -> None:
    config = config_for(tmp_path, "training.steps=3", "parallel.tensor=1", "checkpoint.every=1")
    assert run_ranks(1, stop_unpublished, config) == [(False, 1, 1)]
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == ("stopped", 1)
    assert checkpoints(tmp_path) == ["step_00000001"]
    assert run_ranks(1, go_on, config) == [1]
    assert rows_of(tmp_path) == rows_of(undisturbed)


def stop_before_servers(rank: int, world: int, config: RunConfig, asked: bool) -> int | str:
    """Start a run whose servers do not come; return its exit status, or the error."""
    from megatron_srpo.errors import EngineError
    from megatron_srpo.launch.entry import train_rank
    from megatron_srpo.session import build

    def wait_in_vain(*_: Any) -> None:
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
        raise EngineError("no server has registered")

    link = build.link_engine
    build.link_engine = wait_in_vain  # type: ignore[assignment]
    try:
        return train_rank(config, resume=False)
    except EngineError as error:
        return str(error)
    finally:
        build.link_engine = link


@pytest.mark.parametrize(
    ("asked", "ending", "state"), [(True, 75, "stopped"), (False, "no server has registered", "failed")]
)
def test_a_run_may_be_stopped_before_its_servers_are_there(
    tmp_path: Path, asked: bool, ending: int | str, state: str
) -> None:
    config = config_for(tmp_path, "training.steps=3")
    assert run_ranks(2, stop_before_servers, config, asked) == [ending] * 2
    status = read_status(tmp_path)
    assert (status["state"], status["step"]) == (state, 0)
    assert not (tmp_path / "checkpoints").exists()


def train_shaken(rank: int, world: int, config: RunConfig) -> tuple[int, int]:
    """Train; in step 2, send the children what Slurm sends them. Return the saved step, and how many."""
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    shaken = []

    def shake() -> None:
        for child in psutil.Process().children(recursive=True):
            child.send_signal(signal.SIGUSR1)
            child.send_signal(signal.SIGTERM)
            shaken.append(child.pid)

    with open_run(config, resume=False) as run:
        disturb(run, "update", shake)
        train(run)
        return run.saved_step, len(shaken)


def test_what_a_rank_has_started_survives_the_signals_of_slurm(tmp_path: Path) -> None:
    """Slurm signals every process of a step: one that saving needs must not die of it."""
    config = config_for(tmp_path, "training.steps=3", "parallel.tensor=1", "checkpoint.every=1")
    ((saved, shaken),) = run_ranks(1, train_shaken, config)
    assert saved == 3
    assert shaken >= 2  # at least what saving needs, and a reward worker


# -------------------- taken over by another


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a run folder with a hash of its content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("moment", ["generate", "record", "saving"])
def test_all_ranks_that_lost_the_folder_end_together_and_write_nothing(tmp_path: Path, moment: str) -> None:
    """In whatever phase it happens; ``saving`` is while a checkpoint is being written."""
    config = config_for(tmp_path, "training.steps=3", "checkpoint.every=2")
    endings = run_ranks(2, train_disturbed, config, moment, "claim", timeout=120)
    for ending, _, saved in endings:
        assert ending.startswith(f"fenced: {tmp_path} was taken over by another process (token 00000002: ")
        assert f"pid {os.getpid()}" not in ending and saved == 0
    assert len({ending for ending, _, _ in endings}) == 1
    assert [row["step"] for row in rows_of(tmp_path)] == ([1, 2] if moment == "saving" else [1])
    status = read_status(tmp_path)
    assert (status["state"], status["attempt"]) == ("running", 1)
    assert not list(tmp_path.glob("checkpoints/step_*"))


@pytest.mark.slow
def test_a_frozen_run_that_wakes_up_changes_no_byte(tmp_path: Path, undisturbed: Path) -> None:
    """The split brain: a machine is cut off, its job is started elsewhere, and the machine comes back."""
    folder = tmp_path / "run"
    config = config_for(folder, "training.steps=3", "parallel.tensor=1", "checkpoint.every=1")
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    log = tmp_path / "log"
    old = start(command(tmp_path / "run.yaml", "--resume-if-started"), log)
    try:
        wait_for_checkpoint(folder, 1, old, log)
        old.send_signal(signal.SIGSTOP)
        assert read_status(folder)["state"] == "running", "it ended before it could be frozen"
        run_ranks(1, resume_once, config, timeout=300)
        assert rows_of(folder) == rows_of(undisturbed)
        assert read_status(folder)["attempt"] == 2
        before = fingerprint(folder)
        old.send_signal(signal.SIGCONT)
        assert old.wait(timeout=300) == 2, log.read_text()
    finally:
        os.killpg(old.pid, signal.SIGKILL)
    assert "was taken over by another process (token 00000002: host" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert fingerprint(folder) == before


def resume_once(rank: int, world: int, config: RunConfig) -> None:
    assert go_on(rank, world, config) >= 1


def wait_for_checkpoint(folder: Path, step: int, process: subprocess.Popen, log: Path) -> None:
    wait_for_row(folder, step, process, log)
    while not (folder / "checkpoints" / f"step_{step:08d}").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


# -------------------- signals to real processes


@pytest.mark.slow
def test_a_signal_to_a_rank(tmp_path: Path, undisturbed: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    config = config_for(folder, "training.steps=3", "parallel.tensor=1")
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    process = start(command(tmp_path / "run.yaml"), log)
    wait_for_row(folder, 1, process, log)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 75, log.read_text()
    status = read_status(folder)
    # Python runs the handlers of signals that came together in the order of their numbers: USR1 is 10.
    assert status["reason"] == "stopped on request (SIGUSR1)"
    line = f"stopped on request (SIGUSR1) after step {status['step']} of 3; continue with --resume"
    assert line in log.read_text() and "Traceback" not in log.read_text()
    assert checkpoints(folder) == [f"step_{status['step']:08d}"]
    finish(start(command(tmp_path / "run.yaml", "--resume-if-started"), log), log)
    assert rows_of(folder) == rows_of(undisturbed)


def test_a_signal_to_the_command_reaches_the_ranks_that_it_started(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    (tmp_path / "run.yaml").write_text(to_yaml(config_for(folder, "training.steps=50")))
    process = start(command(tmp_path / "run.yaml", "--resume-if-started"), log)
    wait_for_row(folder, 1, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 75, log.read_text()
    status = read_status(folder)
    assert (status["state"], status["reason"]) == ("stopped", "stopped on request (SIGTERM)")
    assert 1 <= status["step"] < 50
    assert checkpoints(folder) == [f"step_{status['step']:08d}"]
    assert "Traceback" not in log.read_text()
