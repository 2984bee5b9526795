"""One side of a side-by-side benchmark as a process that makes a step when told to, and reports what it took.

Several lanes live at the same time and step in turn (A B A B ...), so that whatever else the machine does
meanwhile hits all of them alike. A lane may be several ranks; rank 0 talks to the benchmark over a Unix
socket, one JSON object per line. A lane that waits sleeps.
"""

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from megatron_srpo import platform
from megatron_srpo.errors import UserError

Prompts = list[tuple[int, tuple[int, ...]]]
"""Place of a prompt in the step's batch, and its token ids."""


class BenchmarkError(UserError):
    """A comparison that cannot be made, or whose two sides did not do the same work."""


@dataclass(frozen=True)
class LaneSpec:
    """Everything that a lane's processes need to know.

    Attributes:
        side: module that runs it: "our_side" or "trl_side".
        cpus: cores that all its processes are pinned to.
        threads: of each rank.
        micro_batch: responses per forward pass of a rank (TRL's per_device_train_batch_size).
    """

    name: str
    side: str
    config: str
    overrides: tuple[str, ...]
    steps: int
    control: str
    ranks: int = 1
    threads: int = 1
    cpus: tuple[int, ...] = (0,)
    micro_batch: int = 64

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: str) -> "LaneSpec":
        """Read what :meth:`save` wrote."""
        tree: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        tree |= {key: tuple(value) for key, value in tree.items() if isinstance(value, list)}
        return cls(**tree)

    def command(self, path: Path) -> list[str]:
        """Return the command line that starts the lane from the spec saved at ``path``."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        module = ["-m", f"tools.benchmarks.{self.side}", str(path)]
        return [sys.executable, *(launcher if self.ranks > 1 else []), *module]


@dataclass
class RankFacts:
    """What one rank did in one step; ranks that share a replica's work leave its counts to the leader."""

    phases: dict[str, float] = field(default_factory=dict)
    prompts: Prompts = field(default_factory=list)
    responses: int = 0
    response_tokens: int = 0
    processor: float = 0.0


def digest(prompts: Prompts) -> str:
    """Return a fingerprint of a step's prompts in the order of their places."""
    return hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest()[:16]


def combine(facts: Sequence[RankFacts], wall: float) -> dict[str, Any]:
    """Join the ranks' facts into one step's record. Phases are rank 0's."""
    prompts = [item for rank in facts for item in rank.prompts]
    return {
        "wall": wall,
        "processor": sum(rank.processor for rank in facts),
        "phases": facts[0].phases,
        "prompts": digest(prompts),
        "prompt_count": len(prompts),
        "responses": sum(rank.responses for rank in facts),
        "response_tokens": sum(rank.response_tokens for rank in facts),
    }


def processor_seconds() -> float:
    """Return user and system seconds of this process and its living descendants (verifier processes)."""
    import psutil

    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    return sum(item.user + item.system for item in times)


class Gate:
    """A lane's own view: waits for the word, measures a step, reports it. All ranks make the same calls."""

    def __init__(self, spec: LaneSpec) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(spec.threads)
        self.dist = dist
        self.parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.parallel else 0
        self.line: IO[str] | None = None
        self.started = (0.0, 0.0)
        if self.rank == 0:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(spec.control)
            self.line = connection.makefile("rw", encoding="utf-8")

    def ready(self, settings: dict[str, Any]) -> None:
        """Say that loading is over, and what was set."""
        self._send({"ready": settings})

    def open(self) -> None:
        """Wait for the word to step; start the clocks."""
        if self.line is not None and not self.line.readline():
            raise SystemExit("the benchmark is gone")
        if self.parallel:
            self.dist.barrier()
        self.started = time.perf_counter(), processor_seconds()

    def close(self, facts: RankFacts) -> None:
        """Stop the clocks and report the step."""
        wall = time.perf_counter() - self.started[0]
        facts.processor = processor_seconds() - self.started[1]
        everyone: list[Any] = [facts]
        if self.parallel:
            everyone = [None] * self.dist.get_world_size()
            self.dist.all_gather_object(everyone, facts)
        self._send(combine(everyone, wall))

    def _send(self, message: dict[str, Any]) -> None:
        if self.line is not None:
            self.line.write(json.dumps(message) + "\n")
            self.line.flush()


def pin(spec: LaneSpec) -> None:
    """Keep this process, and the children that it starts, on the lane's cores."""
    os.sched_setaffinity(0, spec.cpus)


class Lane:
    """The benchmark's view of a lane: a process group that was started and can be told to step.

    Raises:
        BenchmarkError: it ended early or said nothing for ``timeout`` seconds (with the end of its output).
    """

    def __init__(self, spec: LaneSpec, folder: Path, timeout: float = 600.0) -> None:
        self.spec = spec
        self.timeout = timeout
        self.log = folder / "log.txt"
        self.records: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        spec.save(folder / "spec.json")
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(spec.control)
        self.server.listen(1)
        self.server.settimeout(0.5)
        self.connection: socket.socket | None = None
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                spec.command(folder / "spec.json"),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(spec.threads),
                start_new_session=True,  # a group of its own, to be ended as a whole
            )

    def wait_ready(self) -> None:
        """Wait until the lane has loaded everything."""
        self.connection = self._until(self._accept)
        self.connection.settimeout(0.5)
        self.received = b""
        self.settings = self._until(self._receive)["ready"]

    def step(self) -> dict[str, Any]:
        """Let the lane make one step; return and keep its record."""
        assert self.connection is not None, "wait_ready() comes first"
        self.connection.sendall(b"step\n")
        record = self._until(self._receive)
        self.records.append(record)
        return record

    def stop(self) -> None:
        """End the lane, whatever it is doing."""
        for closing in (self.connection, self.server):
            if closing is not None:
                closing.close()
        if self.process.poll() is None:
            try:
                self.process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGTERM)
                self.process.wait()

    def _accept(self) -> socket.socket | None:
        try:
            return self.server.accept()[0]
        except TimeoutError:
            return None

    def _receive(self) -> dict[str, Any] | None:
        assert self.connection is not None
        try:
            part = self.connection.recv(65536)
        except TimeoutError:
            return None
        if not part:
            raise self._failed("closed its connection")
        self.received += part
        line, newline, rest = self.received.partition(b"\n")
        if not newline:
            return None
        self.received = rest
        return json.loads(line)

    def _until(self, attempt: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + self.timeout
        while True:
            found = attempt()
            if found is not None:
                return found
            if self.process.poll() not in (None, 0):
                raise self._failed(f"ended with status {self.process.returncode}")
            if time.monotonic() > deadline:
                raise self._failed(f"said nothing for {self.timeout:.0f} s")

    def _failed(self, what: str) -> BenchmarkError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return BenchmarkError(f"{self.spec.name}: {what}; the end of its output:\n{tail}")


def environment(threads: int) -> dict[str, str]:
    """Return a lane's environment: its number of threads, no network, no chatter."""
    return platform.child_environment(
        {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "WANDB_MODE": "disabled",
        }
    )
