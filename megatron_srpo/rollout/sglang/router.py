"""SGLang's router in front of several servers.

``python -m megatron_srpo.rollout.sglang.router ARGUMENTS`` is ``python -m sglang_router.launch_router``, with
the API key taken from the environment and ``--die-with PID`` as in ``serve.py``.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from megatron_srpo import platform
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch, free_port
from megatron_srpo.rollout.sglang.serve import die_with

_POLL_S = 0.2
_TIMEOUT_S = 10.0
#: Requests are retried by the client, which counts them, and servers are watched, added and removed by the
#: fleet: a router that asks /health of a busy server would take it out of rotation.
_OPTIONS = ("--disable-retries", "--disable-health-check", "--policy=cache_aware", "--log-level=warn")


def main(arguments: list[str]) -> None:
    """Run the router until it is told to end."""
    if arguments[:1] == ["--die-with"]:
        die_with(int(arguments[1]))
        arguments = arguments[2:]
    from sglang_router.launch_router import launch_router, parse_router_args

    api_key = platform.take_sglang_api_key()
    launch_router(parse_router_args(arguments + ([f"--api-key={api_key}"] if api_key else [])))


def is_installed() -> bool:
    """Say whether sglang-router can be imported."""
    return importlib.util.find_spec("sglang_router") is not None


class Router:
    """The router's process and the servers behind it.

    Raises:
        EngineError: sglang-router is not installed.
    """

    def __init__(self, config: SGLangConfig, log_dir: Path, api_key: str) -> None:
        if not is_installed():
            raise EngineError(
                "sglang.router = 'on' needs sglang-router, which is not installed: make install-sglang"
            )
        self._config = config
        self._api_key = api_key
        self._workers: list[Endpoint] = []
        self._process = HttpProcess(
            "SGLang's router",
            self._command,
            _serves,
            # Its servers are never behind a proxy, whatever the environment says of others.
            environment={**platform.sglang_environment(api_key, 1), "NO_PROXY": "*", "no_proxy": "*"},
            log_path=log_dir / "router.log",
            host=config.host,
            api_key=api_key,
            start_timeout_s=config.start_timeout_s,
            log_tail_lines=config.log_tail_lines,
        )

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self._process.endpoint

    @property
    def workers(self) -> tuple[str, ...]:
        """URLs of the servers that the router itself says it sends requests to.

        Raises:
            EngineError: it does not answer, or not with a list of workers.
        """
        return tuple(worker["url"] for worker in self._listed())

    def is_alive(self) -> bool:
        """Say whether its process runs."""
        return self._process.is_alive()

    def start(self, workers: Sequence[Endpoint]) -> None:
        """Start it, or start it again after it has died, and put these servers behind it.

        Raises:
            EngineError: it does not start, or does not accept a server.
        """
        self._process.stop()
        self._process.start()
        self._process.wait_ready()
        for worker in workers:
            self.add(worker)

    def add(self, worker: Endpoint) -> None:
        """Put a server into rotation and wait until it is.

        Raises:
            EngineError: the router refuses it, or has not taken it in time.
        """
        body = {"url": worker.url, "worker_type": "regular", "api_key": worker.api_key}
        self._call("POST", "/workers", body)
        self._wait(worker.url, present=True)

    def remove(self, url: str) -> None:
        """Take a server out of rotation and wait until it is; one that is not there is no error.

        Raises:
            EngineError: the router does not answer, or has not removed it in time.
        """
        for worker in self._listed():
            if worker["url"] == url:
                self._call("DELETE", f"/workers/{quote(str(worker['id']), safe='')}", None)
        self._wait(url, present=False)

    def error(self, what: str) -> EngineError:
        """Return an error that says what happened to the router, with the end of its log."""
        return self._process.error(what)

    def stop(self) -> None:
        """End it. Idempotent."""
        self._process.stop()

    def _command(self, port: int) -> list[str]:
        start = [sys.executable, "-m", "megatron_srpo.rollout.sglang.router", "--die-with", str(os.getpid())]
        metrics = free_port("127.0.0.1")  # else every router on the machine takes the same
        return [
            *start,
            *_OPTIONS,
            f"--host={self._config.host}",
            f"--port={port}",
            "--prometheus-host=127.0.0.1",
            f"--prometheus-port={metrics}",
            f"--request-timeout-secs={max(1, round(self._config.request_timeout_s))}",
            f"--max-concurrent-requests={self._config.max_concurrency * max(1, self._config.servers)}",
        ]

    def _call(self, method: str, path: str, body: object) -> Reply:
        reply = fetch(self.endpoint, path, _TIMEOUT_S, method, body)
        if isinstance(reply, OSError):
            raise self._process.error(f"does not answer {method} {path}: {reply!r}")
        if reply.status >= 400:
            text = reply.body[:300].decode(errors="replace")
            raise self._process.error(f"answers {method} {path} with status {reply.status}: {text}")
        return reply

    def _listed(self) -> list[dict]:
        answer = self._call("GET", "/workers", None).json()
        workers = answer.get("workers") if isinstance(answer, dict) else None
        if not isinstance(workers, list) or not all(
            isinstance(worker, dict) and {"url", "id"} <= worker.keys() for worker in workers
        ):
            raise self._process.error(f"lists its workers in a form that is not understood: {answer!r:.300}")
        return workers

    def _wait(self, url: str, present: bool) -> None:
        """The router changes its list in the background."""
        deadline = time.monotonic() + self._config.start_timeout_s
        while True:
            ready = [worker.get("is_healthy", True) for worker in self._listed() if worker["url"] == url]
            if (all(ready) and bool(ready)) if present else not ready:
                return
            if time.monotonic() > deadline:
                wish = "accepted" if present else "removed"
                raise self._process.error(f"has not {wish} {url} after {self._config.start_timeout_s:g} s")
            time.sleep(_POLL_S)


def _serves(endpoint: Endpoint) -> bool:
    reply = fetch(endpoint, "/workers", _TIMEOUT_S)
    return isinstance(reply, Reply) and reply.status == 200


if __name__ == "__main__":
    main(sys.argv[1:])
