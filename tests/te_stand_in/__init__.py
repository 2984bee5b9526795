"""Ranks on which Megatron-Core finds a stand-in for Transformer Engine (see ``path/transformer_engine``)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ranks import Pool

#: Workers of their own: those of other tests have imported Megatron-Core without Transformer Engine.
_POOL = Pool(str(Path(__file__).parent / "path"))


def run_stand_in(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Do what :func:`tests.ranks.run_ranks` does, with the stand-in to be found."""
    return _POOL.run(world, function, arguments)
