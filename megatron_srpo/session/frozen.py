"""A model whose weights stay as they are, asked from one rank: it judges or writes, and is not trained."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import EngineLost, ProgressCallback, RolloutEngine
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.session.engine import engine_alone
from megatron_srpo.weights.transports.base import wait_all

#: Starts of an engine that is lost while it answers, before it is given up.
_STARTS = 3
_WEIGHTS, _CACHE = "weights", "kv_cache"


class FrozenModel:
    """Answers requests with the weights of one model folder.

    The engine is opened by the first call and reopened when its servers are lost. Where it shares devices
    with a trainer (``rollout.placement = colocated``), :meth:`park` releases them until the next call.

    Args:
        config: of a run with this model; says which engine, and where.
        folder: of the model; may be another than the config's.
        logs: folder for the servers' logs.
        say: shows a line about the engine.
    """

    def __init__(self, config: RunConfig, folder: Path, logs: Path, say: Callable[[str], None]) -> None:
        model = dataclasses.replace(config.model, path=str(folder))
        self._config = dataclasses.replace(config, model=model, output_dir=str(logs))
        self._say = say
        self._stack = ExitStack()
        self._engine: RolloutEngine | None = None
        self._parked = False
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # Not Qwen3Architecture: a model that is never trained here, such as a coder, may be of another kind.
        self._vocab_size = int(AutoConfig.from_pretrained(folder).vocab_size)

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Answer every request, in order.

        Raises:
            EngineError: the engine cannot be started, or was lost again and again.
        """
        for left in reversed(range(_STARTS)):
            try:
                return self._awake().generate(requests, params, on_progress)
            except EngineLost as error:
                self.close()
                if not left:
                    raise
                self._say(f"{error}; starting the engine again")
        raise AssertionError("unreachable")

    def park(self) -> None:
        """Release what the engine shares with a trainer. Nothing may be running."""
        engine = self._engine
        if engine is None or self._parked:
            return
        if isinstance(engine, LocalEngine):
            engine.move_to("cpu")
            self._parked = True
        elif isinstance(engine, SGLangEngine) and self._config.rollout.placement == "colocated":
            self._on_servers(engine, "releasing memory", lambda server: server.release_memory())
            self._parked = True

    def close(self) -> None:
        """End the engine. Idempotent; the next call opens another."""
        self._engine, self._parked = None, False
        self._stack.close()

    def _awake(self) -> RolloutEngine:
        if self._engine is None:
            alone = engine_alone(self._config, self._vocab_size, self.tokenizer, self._say)
            self._engine = self._stack.enter_context(alone)
            if isinstance(self._engine, SGLangEngine) and self._config.rollout.sglang.urls:
                self._load(self._engine)  # whatever these servers held
                self._on_servers(self._engine, "emptying caches", lambda server: server.flush_cache())
        elif self._parked:
            self._wake(self._engine)
        self._parked = False
        return self._engine

    def _wake(self, engine: RolloutEngine) -> None:
        if isinstance(engine, LocalEngine):
            engine.move_to(None)
        elif isinstance(engine, SGLangEngine):
            self._on_servers(engine, "taking memory", lambda server: server.resume_memory([_WEIGHTS]))
            self._load(engine)  # SGLang forgets weights with their memory
            self._on_servers(engine, "taking memory", lambda server: server.resume_memory([_CACHE]))

    def _load(self, engine: SGLangEngine) -> None:
        folder = str(Path(self._config.model.path).absolute())
        self._on_servers(engine, "loading weights", lambda server: server.load_from_disk(folder, 0))

    def _on_servers(self, engine: SGLangEngine, step: str, call: Callable[[Any], Any]) -> None:
        calls = {server.name: call(server) for server in engine.servers}
        try:
            wait_all(calls, self._config.rollout.sync.timeout_s, step)
        except EngineError as error:
            raise EngineLost(str(error)) from error
