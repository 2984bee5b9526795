"""Kills a self-play at random moments, goes on with it, and compares its end with an undisturbed one.

    python -m tools.kill_self_play --config examples/self_play/r_diverse.yaml --kills 20 iterations=2

First the self-play runs without a kill. Then, for every kill, it begins anew in a folder of its own, is
killed with all its processes at a moment drawn evenly from the time that the undisturbed one took, and goes
on to its end. What must be equal, bit for bit: questions, votes, labels, memory bank, training sets, metrics
(but for seconds) and both models' weights. What was computed twice is counted in the files that keep it.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from megatron_srpo import platform
from tools.self_play_state import differences, fingerprint, kept_twice

_LOOK_S = 0.02


@dataclass(frozen=True)
class Trial:
    """One killed self-play.

    Attributes:
        second: after its start, at which it was killed.
        phase: of the iteration that was being done.
        different: names of what is not as in the undisturbed one.
        twice: how many questions, votes, codes and vectors were kept more than once.
    """

    second: float
    iteration: int
    phase: str
    different: list[str]
    twice: int

    @property
    def passed(self) -> bool:
        """Whether the kill left no trace."""
        return not self.different and not self.twice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; return 1 when a kill left a trace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="of the self-play; one rank")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="trials (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/kill-self-play"), help="folder of the trials")
    parser.add_argument("--keep", action="store_true", help="keep the folders of trials that passed")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "megatron_srpo.cli", "self-play", "--config", options.config]
    command += ["--resume-if-started", *options.overrides]
    whole = options.out / "whole"
    seconds = run_to_end(command, whole)
    expected = fingerprint(whole)
    print(f"undisturbed: {seconds:.0f} s, {len(expected)} things to compare", flush=True)
    generator = random.Random(options.seed)
    trials = []
    for number in range(1, options.kills + 1):
        folder = options.out / f"killed_{number:02d}"
        trial = _trial(command, folder, generator.uniform(0, seconds), expected)
        trials.append(trial)
        print(f"{number:3d}  {_line(trial)}", flush=True)
        if trial.passed and not options.keep:
            shutil.rmtree(folder)
    failed = sum(not trial.passed for trial in trials)
    print(f"{len(trials) - failed} of {len(trials)} ended as if never killed")
    return int(failed > 0)


def _trial(command: Sequence[str], folder: Path, second: float, expected: dict[str, str]) -> Trial:
    iteration, phase = run_and_kill(command, folder, second)
    run_to_end(command, folder)
    return Trial(second, iteration, phase, differences(expected, fingerprint(folder)), kept_twice(folder))


def _line(trial: Trial) -> str:
    where = f"killed after {trial.second:5.1f} s, iteration {trial.iteration}, {trial.phase:10s}"
    if trial.passed:
        return f"{where}  equal"
    return f"{where}  DIFFERENT: {', '.join(trial.different[:5])}; {trial.twice} kept twice"


def _start(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*command, f"output_dir={json.dumps(str(folder))}"],
        stdout=log,
        stderr=log,
        env=platform.child_environment(),
        start_new_session=True,
    )


def run_to_end(command: Sequence[str], folder: Path) -> float:
    """Run a self-play to its end; return the seconds."""
    began = time.monotonic()
    status = _start(command, folder).wait()
    if status:
        raise SystemExit(f"{folder} ended with status {status}; see {folder.with_suffix('.log')}")
    return time.monotonic() - began


def run_and_kill(command: Sequence[str], folder: Path, second: float) -> tuple[int, str]:
    """Start a self-play, kill it and all that it has started; return what it was doing."""
    process = _start(command, folder)
    until = time.monotonic() + second
    while time.monotonic() < until and process.poll() is None:
        time.sleep(_LOOK_S)
    family = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)
    return _position(folder)


def _position(folder: Path) -> tuple[int, str]:
    with suppress(OSError):
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return state["iteration"], state["phase"]
    return 1, "challenger" if (folder / "config.yaml").exists() else "start"


if __name__ == "__main__":
    sys.exit(main())
