"""Failing together: what goes wrong on one rank of a group is raised on all of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_srpo.errors import EngineError, UserError

T = TypeVar("T")


def on_first_rank(action: Callable[[], T]) -> T:
    """Do something on global rank 0 alone, and give every rank what it returned. Collective.

    Raises:
        UserError: on every rank, when the action raised it; nobody is left waiting.
    """
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = action()
        except UserError as error:
            box[1] = error
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def together(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do something on every rank of a group; all fail when one does, so that none waits on. Collective.

    Args:
        action: its own collectives, if it has any, must end on every rank when they fail on one.
        group: by default all ranks.

    Returns:
        What this rank's action returned.

    Raises:
        EngineError: the action raised a UserError on some rank; says what on each, the same on all ranks.
    """
    failure: str | None = None
    result: T | None = None
    try:
        result = action()
    except UserError as error:
        failure = str(error)
    failures: list[str | None] = [failure] * dist.get_world_size(group)
    if len(failures) > 1:
        dist.all_gather_object(failures, failure, group=group)
    said = [text for text in dict.fromkeys(failures) if text is not None]
    if said:
        raise EngineError("; ".join(said))
    return result  # type: ignore[return-value]
