"""Work that is done and saved block by block, on the first rank, until it is done or the run shall stop."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_srpo.errors import UserError
from megatron_srpo.report.records import RecordFile, read_records
from megatron_srpo.rollout.collect import from_first_patiently
from megatron_srpo.session.control import Control

T = TypeVar("T")


class Paused(Exception):
    """The run shall stop; what was done is saved."""


class Blocks:
    """A file of numbered blocks, each of which is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = RecordFile(path, one_per_step=True)
        self.saved: dict[int, list[Any]] = {
            int(record["step"]): record["items"] for record in read_records(path)
        }

    def append(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Save the next block."""
        number = len(self.saved)
        self._file.append([{"step": number, "items": list(items)}])
        self.saved[number] = list(items)

    @property
    def items(self) -> list[Any]:
        """All items, in order."""
        return [item for number in sorted(self.saved) for item in self.saved[number]]


def check_pause(control: Control) -> None:
    """Raise Paused where this rank knows of a reason to stop. No collective."""
    if control.pending():
        raise Paused


def on_first_rank_patiently(action: Callable[[], T], control: Control) -> T:
    """Do long work on the first rank alone, and give every rank what it returned. A collective over the job.

    Args:
        action: must not communicate with other ranks; may raise Paused.

    Raises:
        UserError: on every rank, when the action raised it.
        StopRequested: on every rank, when the action paused.
    """
    first = partial(_outcome, action) if dist.get_rank() == 0 else None
    outcome = from_first_patiently(first)
    if isinstance(outcome, Paused):
        control.heed()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _outcome(action: Callable[[], T]) -> T | UserError | Paused:
    try:
        return action()
    except (UserError, Paused) as error:
        return error
