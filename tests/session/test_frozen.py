"""A frozen model: opened when asked, parked beside a trainer, opened again when its servers are lost."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.loader import build, with_overrides
from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.chat import render_prompt
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import EngineLost
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.session import frozen
from megatron_srpo.session.frozen import FrozenModel

MODEL = Path(__file__).parents[2] / "examples" / "models" / "qwen3-tiny"
PARAMS = SamplingParams(1.0, 1.0, 8)


def config(*overrides: str) -> RunConfig:
    base = build(RunConfig, {"model": {"path": "elsewhere"}, "data": {"max_prompt_tokens": 64}})
    return with_overrides(base, overrides)


def model(tmp_path: Path, *overrides: str) -> FrozenModel:
    return FrozenModel(config(*overrides), MODEL, tmp_path, lambda text: None)


def requests(asked: FrozenModel) -> list[Request]:
    prompt = tuple(render_prompt(asked.tokenizer, [{"role": "user", "content": "1 + 1 = ?"}], False))
    return [Request(str(number), prompt, number) for number in range(3)]


def test_the_folders_weights_answer_before_and_after_parking(tmp_path: Path) -> None:
    asked = model(tmp_path)
    first = asked.sample(requests(asked), PARAMS)
    assert [one.request_id for one in first] == ["0", "1", "2"]
    asked.park()
    asked.park()
    assert asked.sample(requests(asked), PARAMS) == first
    asked.close()
    asked.close()
    assert asked.sample(requests(asked), PARAMS) == first
    asked.close()


class Servers(SGLangEngine):
    """Stands in for SGLang servers on GPUs: notes what is asked of them, and may be lost."""

    def __init__(self, notes: list[str], losses: int) -> None:
        self.notes, self.losses, self.name = notes, losses, "one"

    @property
    def servers(self) -> Any:
        return (self,)

    def generate(self, requests: Sequence[Request], *rest: object) -> list[Completion]:
        self.notes.append("generate")
        if self.losses:
            self.losses -= 1
            raise EngineLost("no server answers")
        return []

    def _note(self, text: str) -> "Future[None]":
        self.notes.append(text)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def release_memory(self, tags: Sequence[str] | None = None) -> "Future[None]":
        return self._note("release")

    def resume_memory(self, tags: Sequence[str] | None = None) -> "Future[None]":
        return self._note(f"resume {' '.join(tags or ())}")

    def load_from_disk(self, folder: str, version: int) -> "Future[None]":
        return self._note(f"load {Path(folder).name} as {version}")

    def flush_cache(self, timeout_s: float = 60.0) -> "Future[None]":
        return self._note("flush")


def with_servers(monkeypatch: pytest.MonkeyPatch, losses: Sequence[int]) -> list[str]:
    notes: list[str] = []
    left = list(losses)

    @contextmanager
    def open_engine(*arguments: object) -> Iterator[Servers]:
        notes.append("open")
        yield Servers(notes, left.pop(0))
        notes.append("close")

    monkeypatch.setattr(frozen, "engine_alone", open_engine)
    return notes


def test_colocated_servers_get_their_weights_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang forgets weights with their memory; keys and values come last, when the weights are there."""
    notes = with_servers(monkeypatch, [0])
    asked = model(tmp_path, "rollout.engine=sglang", "rollout.placement=colocated")
    for _ in range(2):
        asked.sample([], PARAMS)
        asked.park()
    asked.sample([], PARAMS)
    woken = ["resume weights", "load qwen3-tiny as 0", "resume kv_cache", "generate"]
    assert notes == ["open", "generate", "release", *woken, "release", *woken]


def test_servers_on_devices_of_their_own_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = with_servers(monkeypatch, [0])
    asked = model(tmp_path, "rollout.engine=sglang")
    for _ in range(2):
        asked.sample([], PARAMS)
        asked.park()
    assert notes == ["open", "generate", "generate"]


def test_servers_of_the_users_get_the_weights_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = with_servers(monkeypatch, [0])
    asked = model(tmp_path, "rollout.engine=sglang", "rollout.sglang.urls=[http://192.0.2.7:30000]")
    asked.sample([], PARAMS)
    assert notes == ["open", "load qwen3-tiny as 0", "flush", "generate"]


def test_lost_servers_are_started_again_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = with_servers(monkeypatch, [1, 1, 0])
    model(tmp_path, "rollout.engine=sglang").sample([], PARAMS)
    assert notes == ["open", "generate", "close", "open", "generate", "close", "open", "generate"]
    with_servers(monkeypatch, [1, 1, 1])
    with pytest.raises(EngineError, match="no server answers"):
        model(tmp_path, "rollout.engine=sglang").sample([], PARAMS)
