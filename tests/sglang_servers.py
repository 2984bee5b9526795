"""Real SGLang servers for the tests: one shared by all, others for tests that must kill theirs."""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.options import server_arguments
from megatron_srpo.rollout.sglang.process import HttpProcess, sglang_server

ROOT = Path(__file__).resolve().parents[1]
TINY_MODEL = ROOT / "examples" / "models" / "qwen3-tiny"
API_KEY = "-key-of-the-tests"


def require_sglang() -> None:
    """Skip the test where SGLang is not installed."""
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("needs SGLang (make install-sglang)")


@contextmanager
def start_server(
    model: Path | str = TINY_MODEL, dtype: str = "float32", **config: Any
) -> Iterator[HttpProcess]:
    """Start one server for a test that must kill or stop it; yields it ready, and always ends it.

    Args:
        config: fields of SGLangConfig, e.g. ``tensor_parallel=2, options={"max_total_tokens": 4096}``.
    """
    require_sglang()
    settings = SGLangConfig(**config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = server_arguments(settings, str(model), dtype)
        server = sglang_server(0, settings, arguments, Path(folder), API_KEY)
        try:
            server.start()
            server.wait_ready()
            yield server
        finally:
            # A polite end takes SGLang seconds and tests nothing here.
            server.stop()


def restore(endpoint: Endpoint) -> None:
    """Give the shared server the weights back with which it started, and let it go on."""
    from megatron_srpo.rollout.sglang.http import EventLoopThread
    from megatron_srpo.rollout.sglang.server import SGLangServer

    loop = EventLoopThread()
    server = SGLangServer(endpoint, loop)
    try:
        server.pause("abort").result(60)
        server.load_from_disk(str(TINY_MODEL), 0).result(60)
        server.flush_cache(60).result(60)
        server.resume().result(60)
    finally:
        loop.close()
