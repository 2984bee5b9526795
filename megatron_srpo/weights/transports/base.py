"""What a transport does, and what it may ask of an engine's server."""

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from megatron_srpo.errors import EngineError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.weights.assemble import BucketMemory, FilledBucket
from megatron_srpo.weights.plan import Plan, Training


class EngineServer(Protocol):
    """The control interface of one server. Calls return at once; failures are EngineErrors in the future."""

    @property
    def name(self) -> str:
        """Its address, for messages."""
        ...

    def load_from_disk(self, folder: str, version: int) -> "Future[None]":
        """Read all weights from a folder of safetensors."""
        ...

    def load_from_tensors(self, payloads: list[str], load_format: str | None, version: int) -> "Future[None]":
        """Load pickled (name, tensor) lists, one per tensor-parallel rank, base64."""
        ...

    def join_group(
        self, address: str, port: int, rank_offset: int, world_size: int, group: str, backend: str
    ) -> "Future[None]":
        """Join a group of processes whose first is the sender."""
        ...

    def load_from_group(
        self,
        names: list[str],
        dtypes: list[str],
        shapes: list[list[int]],
        group: str,
        version: int,
        load_format: str | None,
    ) -> "Future[None]":
        """Receive one broadcast from the sender and load it."""
        ...

    def leave_group(self, group: str) -> "Future[None]":
        """Leave a group."""
        ...


@dataclass(frozen=True)
class Sending:
    """One round on its way. On ranks that drive no server it holds nothing.

    Attributes:
        label: what is sent, for messages.
        answers: by server name, the server's answer to come.
        works: collectives under way beside them.
    """

    label: str
    answers: dict[str, "Future[Any]"]
    works: tuple[dist.Work, ...] = ()

    def wait(self, timeout_s: float) -> None:
        """Wait until every server has loaded the round.

        Raises:
            EngineError: a server refused, was lost, or did not answer in time; names it and the buckets.
        """
        wait_all(self.answers, timeout_s, self.label)
        for work in self.works:
            work.wait()


def wait_all(answers: dict[str, "Future[Any]"], timeout_s: float, step: str) -> dict[str, Any]:
    """Return the servers' answers. The first failure ends the wait for the others.

    Raises:
        EngineError: names the server and the step.
    """
    results = {}
    done, _ = wait(answers.values(), timeout_s, FIRST_EXCEPTION)
    # Those that have answered first: an error among them says more than that others have not.
    for name, answer in sorted(answers.items(), key=lambda item: item[1] not in done):
        try:
            results[name] = answer.result(0)
        except FutureTimeout as error:
            raise EngineError(
                f"server {name} did not answer within {timeout_s:.0f} s: {step}; it may hang (see its log). "
                "Raise rollout.sync.timeout_s if the model is merely large"
            ) from error
        except EngineError as error:
            raise EngineError(f"{step}: {error}") from error
    return results


def label_of(buckets: Iterable[FilledBucket]) -> str:
    """Name buckets for a message."""
    return "sending " + (", ".join(str(item.bucket) for item in buckets) or "nothing")


class Transport(Protocol):
    """Brings the buckets of a plan to the servers of one copy of the model.

    All ranks of the copy call the same methods in the same order; only its first rank has ``servers``.
    """

    @property
    def link_rate(self) -> float:
        """Bytes per second of the bare link, measured on the first rank when it was opened; 0 before."""
        ...

    def plan(self, arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int) -> Plan:
        """Return the plan whose buckets this transport carries."""
        ...

    def memory(self, dtype: torch.dtype, device: torch.device) -> BucketMemory:
        """Return where its buckets must lie."""
        ...

    def open(self, servers: Sequence[EngineServer], version: int) -> None:
        """Prepare to send. The servers are paused."""
        ...

    def send(self, filled: list[FilledBucket]) -> Sending:
        """Start to send this rank's buckets of one round."""
        ...

    def finish(self) -> Sending:
        """Start what is left to do after the last round."""
        ...

    def done(self) -> None:
        """Clean up after all servers have loaded everything."""
        ...

    def abandon(self) -> None:
        """Give up after a failure; the next :meth:`open` starts anew. Does not communicate."""
        ...
