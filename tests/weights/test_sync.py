"""The steps of a synchronisation when a server fails in one of them. Real servers: tests/rollout/sglang."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.errors import EngineError
from tests.ranks import run_ranks
from tests.sglang_servers import TINY_MODEL

STEPS = ["pause", "begin", "load", "end", "flush", "version", "resume"]


class Server:
    """Notes what it is asked, and refuses one step."""

    name = "http://127.0.0.1:9"

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.asked: list[str] = []

    def _answer(self, step: str) -> "Future[Any]":
        self.asked.append(step)
        future: Future[Any] = Future()
        if step == self.refused:
            future.set_exception(EngineError(f"refused to {step}"))
        else:
            future.set_result(None)
        return future

    def pause(self, mode: str) -> "Future[Any]":
        return self._answer("pause")

    def begin_update(self) -> "Future[Any]":
        return self._answer("begin")

    def load_from_disk(self, folder: str, version: int) -> "Future[Any]":
        return self._answer("load")

    def end_update(self) -> "Future[Any]":
        return self._answer("end")

    def flush_cache(self, timeout_s: float) -> "Future[Any]":
        return self._answer("flush")

    def set_version(self, version: int) -> "Future[Any]":
        return self._answer("version")

    def resume(self) -> "Future[Any]":
        return self._answer("resume")


def push(rank: int, world: int, folder: str, refused: str) -> tuple[list[str], str]:
    import torch

    from megatron_srpo.model.architecture import Qwen3Architecture
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.sync import SyncSettings, WeightSync
    from megatron_srpo.weights.transports.disk import DiskTransport

    groups = initialize_parallel(2, 1)
    arch = Qwen3Architecture.from_hf_folder(TINY_MODEL)
    transport = DiskTransport(groups, folder, TINY_MODEL)
    settings = SyncSettings(torch.float32, timeout_s=20.0, verify_every=0)
    sync = WeightSync(build_policy(arch, groups), arch, groups, transport, 1, settings)
    server = Server(refused)
    servers: Any = [server] if rank == 0 else []
    try:
        sync.push(servers, 1)
    except EngineError as error:
        return server.asked, str(error)
    return server.asked, ""


def test_the_order_of_the_steps(tmp_path: Path) -> None:
    (asked, error), (_, other) = run_ranks(2, push, str(tmp_path), "")
    assert asked == STEPS
    assert error == other == ""


@pytest.mark.parametrize("refused", STEPS)
def test_a_refusal_stops_all_ranks_and_keeps_the_server_paused(tmp_path: Path, refused: str) -> None:
    """Rank 1 talks to no server; it must neither go on alone nor wait for rank 0."""
    (asked, error), (_, other) = run_ranks(2, push, str(tmp_path), refused)
    assert asked == STEPS[: STEPS.index(refused) + 1]
    assert error == other
    assert error.count("weight synchronisation failed: ") == 1 and error.endswith(f"refused to {refused}")
