"""One SGLang server that was started here: its processes, its port, its log."""

import http.client
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from megatron_srpo import platform
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint

#: Below the range from which Linux serves outgoing connections: one of those must not take the port during
#: the half minute in which the server loads.
_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 3
_POLL_S = 0.25
_PROBE_TIMEOUT_S = 5.0
_CLEAN_UP_S = 5.0
_TAIL_BYTES = 1 << 16
_LINE_CHARACTERS = 2000

_log = logging.getLogger(__name__)


def keep_signals_away() -> None:
    """Block, in this thread and in what it starts from now on, what a scheduler sends to a whole job.

    Slurm sends SIGUSR1 before the time limit, and SIGTERM before it takes a job's nodes away, to every
    process: trainer ranks then end in good order, for which they need their servers. Blocked and not ignored,
    because SGLang's processes install handlers of their own for SIGTERM; those are never called.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})


#: A server dies with the *thread* that started it (PR_SET_PDEATHSIG). This one lives as long as the process.
_spawner = ThreadPoolExecutor(
    max_workers=1, thread_name_prefix="sglang-spawner", initializer=keep_signals_away
)
#: Proxies of the environment are for other hosts.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Reply:
    """An HTTP answer of any status."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Parse the body; None when it is not JSON."""
        with suppress(ValueError):
            return json.loads(self.body)
        return None


def fetch(
    endpoint: Endpoint, path: str, timeout_s: float, method: str = "GET", body: Any = None
) -> Reply | OSError:
    """Make one HTTP call, or return (not raise) why there was no answer: a time-out is a TimeoutError."""
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(endpoint.url + path, data, headers, method=method)
    try:
        with _http.open(request, timeout=timeout_s) as answer:
            return Reply(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read())
    except urllib.error.URLError as error:
        return error.reason if isinstance(error.reason, OSError) else error
    except OSError as error:
        return error
    except http.client.HTTPException as error:
        return ConnectionError(str(error))


def free_port(host: str, preferred: int | None = None) -> int:
    """Choose a port on which a server can listen: ``preferred`` if it is free, else one at random.

    Raises:
        EngineError: none is free.
    """
    # The trainer's own random state belongs to the run, hence a generator apart.
    generator = random.SystemRandom()
    candidates = ([preferred] if preferred else []) + [generator.choice(_PORTS) for _ in range(100)]
    for port in candidates:
        if is_free(host, port):
            return port
    raise EngineError(f"no free port on {host} in {_PORTS.start}..{_PORTS.stop - 1} after 100 tries")


def is_free(host: str, port: int) -> bool:
    """Say whether a server could listen on this port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class HttpProcess:
    """A server process with children, a port and a log file.

    Its processes form a session of their own, so that Ctrl-C reaches only the trainer, which then stops it,
    and SIGTERM and SIGUSR1 are kept from them: only :meth:`stop` ends it. On Linux it is killed when the
    trainer ends, however that happens.

    Attributes:
        name: what error messages call it.
        log_path: standard output and error of all starts, one after the other; readable by its owner only,
            because SGLang logs its options and the API key with them.
        starts: how often it was started.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], list[str]],
        ready: Callable[[Endpoint], bool],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        host: str,
        tensor_parallel: int = 1,
        api_key: str | None = None,
        start_timeout_s: float = 600.0,
        log_tail_lines: int = 40,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.starts = 0
        self._command, self._ready, self._environment = command, ready, dict(environment)
        self._host, self._tensor_parallel, self._api_key = host, tensor_parallel, api_key
        self._start_timeout_s, self._log_tail_lines = start_timeout_s, log_tail_lines
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._log_start = 0
        self._deadline = 0.0
        self._port_attempts = 0

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens, or will listen once it is ready.

        Raises:
            EngineError: it was never started.
        """
        if self._port is None:
            raise EngineError(f"{self.name} has not been started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return Endpoint(f"http://{host}:{self._port}", self._tensor_parallel, self._api_key)

    @property
    def pid(self) -> int | None:
        """The main process; None when it is not started or was stopped."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, on the port of last time if that is free; :meth:`wait_ready` waits until it serves.

        Raises:
            EngineError: there is no free port.
        """
        if self.is_alive():
            raise EngineError(f"{self.name} is running already; stop it first")
        self._port_attempts = 0
        self._deadline = time.monotonic() + self._start_timeout_s
        self._spawn(free_port(self._host, self._port))

    def wait_ready(self) -> None:
        """Wait until it serves. Raises as :meth:`is_ready` does."""
        while not self.is_ready():
            time.sleep(_POLL_S)

    def is_ready(self) -> bool:
        """Say whether it serves. One whose port was taken in the meantime is started again on another.

        Raises:
            EngineError: it has ended, or does not serve in time. It is stopped then; the message has the end
                of its log.
        """
        # Before and after the probe, so that no other server on this port can have answered it.
        if self.is_alive() and self._ready(self.endpoint) and self.is_alive():
            return True
        if not self.is_alive():
            self._start_elsewhere()
        elif time.monotonic() > self._deadline:
            self.stop()
            raise self.error(f"was not ready after {self._start_timeout_s:g} s and was stopped")
        return False

    def is_alive(self) -> bool:
        """Say whether the main process runs (or is suspended)."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it and all its children with SIGKILL: nothing of theirs is to be saved. Idempotent."""
        process = self._process
        if process is None:
            return
        family = _descendants(process.pid)
        process.kill()
        process.wait()
        _end(family, process.pid)
        self._process = None

    def error(self, what: str) -> EngineError:
        """Return an error that says what happened to this server, where its log is, and the log's end."""
        where = self.endpoint.url if self._port is not None else "no port yet"
        return EngineError(
            f"{self.name} at {where} {what}; its log {self.log_path} ends so:\n{self.log_tail()}"
        )

    def log_tail(self) -> str:
        """Return the last lines that this start has logged, without the API key."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                text = log.read().decode("utf-8", errors="replace")
        except OSError as error:
            return f"(cannot be read: {error})"
        lines = text.rstrip().splitlines()[-self._log_tail_lines :]
        tail = "\n".join(line[:_LINE_CHARACTERS] for line in lines) or "(nothing was logged)"
        return tail.replace(self._api_key, "***") if self._api_key else tail

    def _spawn(self, port: int) -> None:
        self._port = port
        self.starts += 1
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        with open(descriptor, "wb") as log:
            self._log_start = log.seek(0, os.SEEK_END)
            log.write(f"==== {time.strftime('%F %T')} start {self.starts} on port {port}\n".encode())
            log.flush()
            self._process = _spawner.submit(
                subprocess.Popen,
                self._command(port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            ).result()

    def _start_elsewhere(self) -> None:
        """Start it again on another port, if another program listening on its own is why it has ended."""
        if self._process is None or self._port is None:
            raise EngineError(f"{self.name} has not been started")
        if self._port_attempts >= _PORT_ATTEMPTS or is_free(self._host, self._port):
            raise self.error(f"ended with exit code {self._process.returncode} while starting")
        self._port_attempts += 1
        _log.warning("%s: another program took port %d; trying another port", self.name, self._port)
        self._spawn(free_port(self._host))


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _end(family: list[psutil.Process], group: int) -> None:
    """Kill the children of a server that has ended, and whoever else is left in its process group.

    Python's resource tracker is let finish: it removes the semaphores and shared memory of the others.
    """
    for child in family:
        with suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
    psutil.wait_procs(family, timeout=_CLEAN_UP_S)
    # Children of a main process that died by itself are found by this alone.
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    psutil.wait_procs(family, timeout=_CLEAN_UP_S)


def sglang_server(
    index: int,
    config: SGLangConfig,
    arguments: Sequence[str],
    log_dir: Path,
    api_key: str,
    place: int | None = None,
) -> HttpProcess:
    """Describe server ``index`` of a fleet; nothing is started yet.

    Args:
        index: its number in the fleet.
        arguments: from ``options.py``; port and host are added here.
        log_dir: folder of ``sglang-<index>.log``.
        api_key: what clients must send; handed over through the environment.
        place: its number among the servers of this machine, which chooses the GPUs; by default ``index``.
    """

    here = index if place is None else place
    first_gpu = config.options.get("base_gpu_id", 0) + here * config.tensor_parallel

    def command(port: int) -> list[str]:
        start = [sys.executable, "-m", "megatron_srpo.rollout.sglang.serve", "--die-with", str(os.getpid())]
        gpus = [f"--base-gpu-id={first_gpu}"] if platform.has_cuda() else []
        return [*start, *arguments, *gpus, f"--host={config.host}", f"--port={port}"]

    return HttpProcess(
        f"SGLang server {index}",
        command,
        serves,
        environment=platform.sglang_environment(api_key, config.tensor_parallel),
        log_path=log_dir / f"sglang-{index}.log",
        host=config.host,
        tensor_parallel=config.tensor_parallel,
        api_key=api_key,
        start_timeout_s=config.start_timeout_s,
        log_tail_lines=config.log_tail_lines,
    )


def serves(endpoint: Endpoint) -> bool:
    """Say whether a server has loaded its model and accepts this key, which no other server knows."""
    for path in ("/health", "/model_info"):
        reply = fetch(endpoint, path, _PROBE_TIMEOUT_S)
        if isinstance(reply, OSError) or reply.status != 200:
            return False
    return True
