"""A user's project: a git repository with the code, a configuration and prompts; runs start there."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_srpo.config.loader import to_yaml
from megatron_srpo.report.metrics import deterministic, read_metrics
from megatron_srpo.session.status import read_status
from tests.conftest import REPOSITORY
from tests.session.test_loop import small_config
from tests.slurm.jobs import PATIENCE
from tools.virtual_slurm import Cluster
from tools.virtual_slurm.system import wait_until

PROMPTS, SAMPLES = 4, 4
RUN = [
    "data.train=[{kind: jsonl, path: prompts.jsonl, task: 'gate:verify', metadata_columns: [number]}]",
    "data.eval=[]",
    "data.shuffle=false",
    "reward.time_limit_s=900",
    f"rollout.prompts_per_step={PROMPTS}",
    f"rollout.samples_per_prompt={SAMPLES}",
    "rollout.max_response_tokens=24",
    "parallel.tensor=1",
    "checkpoint.every=2",
]


class Project:
    """One project and its one run, in ``state/run``.

    Args:
        folder: is made.
        cluster: whose login node the commands run on; None: this machine.
        launch: what goes into the file for ``--launch``.
        run: changes to the run's configuration.
    """

    def __init__(self, folder: Path, cluster: Cluster | None, launch: Mapping[str, Any], *run: str) -> None:
        self.folder, self.cluster = folder, cluster
        self.state, self.run_folder = folder / "state", folder / "state" / "run"
        shutil.copytree(
            REPOSITORY / "megatron_srpo",
            folder / "megatron_srpo",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copy(Path(__file__).with_name("gate.py"), folder)
        (folder / "prompts.jsonl").write_text("".join(_prompt(number) for number in range(400)))
        (folder / "run.yaml").write_text(to_yaml(small_config(Path("state/run"), *RUN, *run)))
        (folder / "cluster.yaml").write_text(yaml.safe_dump(dict(launch)))
        (folder / ".gitignore").write_text("/state/\n__pycache__/\n")
        self.state.mkdir()
        self._commit()

    def _commit(self) -> None:
        me = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        for words in (["init", "--quiet"], ["add", "."], [*me, "commit", "--quiet", "--message=all"]):
            subprocess.run(["git", *words], cwd=self.folder, check=True)

    def command(self, *words: str) -> list[str]:
        """Return the command line of a ``megatron-srpo`` command."""
        own = [
            "env",
            f"NEMORUN_HOME={self.state / 'nemo'}",
            sys.executable,
            "-m",
            "megatron_srpo.cli",
            *words,
        ]
        return self.cluster.command(*own) if self.cluster else own

    def call(self, *words: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a ``megatron-srpo`` command to its end."""
        line = self.command(*words)
        return subprocess.run(line, cwd=self.folder, capture_output=True, text=True, timeout=seconds)

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        """Launch the run and go on while it is watched; what is shown goes to ``state/shown``."""
        line = self.command("launch", "--config", "run.yaml", "--launch", "cluster.yaml", *more)
        with (self.state / "shown").open("ab") as shown:
            return subprocess.Popen(line, cwd=self.folder, stdout=shown, stderr=subprocess.STDOUT)

    @property
    def shown(self) -> str:
        """What the watching command has shown."""
        return (self.state / "shown").read_text()

    @property
    def job(self) -> str:
        """The run's Slurm job."""
        path = self.run_folder / "launch" / "job.json"
        wait_until(path.exists, "the job to be submitted", PATIENCE)
        return str(json.loads(path.read_text())["job_id"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics of finished steps, without what a clock decides."""
        path = self.run_folder / "metrics.jsonl"
        return [deterministic(row) for row in read_metrics(path)] if path.exists() else []

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def status(self) -> dict[str, Any]:
        """What the run says of itself."""
        return read_status(self.run_folder)

    @property
    def scored(self) -> Counter[int]:
        """How often a response to each prompt was scored."""
        return Counter(map(int, (self.state / "scored").read_text().split()))

    def hold(self) -> None:
        """Let no step finish any more."""
        (self.state / "hold").touch()

    def release(self) -> None:
        """End a hold."""
        (self.state / "hold").unlink()

    def advance(self, steps: int = 1, seconds: float = 400) -> None:
        """Wait until further steps are finished, then hold the next one."""
        (self.state / "hold").unlink(missing_ok=True)
        goal = self.step + steps
        wait_until(lambda: self._reached(goal), f"step {goal}", seconds)
        self.hold()

    def _reached(self, goal: int) -> bool:
        status = self.status if (self.run_folder / "status.json").exists() else {}
        assert status.get("state") != "failed", status
        return self.step >= goal


def end(process: "subprocess.Popen[bytes]", seconds: float = 400) -> int:
    """Wait for a process; one that does not end is interrupted."""
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)


def _prompt(number: int) -> str:
    question = f"What is {number % 10} + {number // 10 % 10}?"
    return json.dumps({"prompt": question, "answer": "?", "number": number}) + "\n"
