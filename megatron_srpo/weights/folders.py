"""Output folders that appear whole or not at all, and the files that travel with weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_srpo.errors import CheckpointError, ModelError
from megatron_srpo.weights.agreement import on_first_rank

# What a Hugging Face folder holds beside weights. A fixed list: no code and no foreign files.
HF_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)


class Owner(Protocol):
    """Whoever may write somewhere, as long as it may (:class:`~megatron_srpo.training.fence.Fence`)."""

    @property
    def name(self) -> str:
        """What sets this owner's temporary folders apart from those of any other."""
        ...

    def check(self) -> None:
        """Raise a UserError when another has become the owner."""
        ...


@contextmanager
def new_folder(target: Path, owner: Owner | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that becomes ``target`` when every rank has left the block.

    A collective over all ranks. A process killed inside leaves only ``.<name>.partial``, or
    ``.<name>.<owner>.partial``, which the next attempt removes.

    Args:
        owner: asked before anything is written, and again before the folder appears. Its folder replaces one
            that is there already, left by an earlier owner; without an owner that is refused.

    Raises:
        CheckpointError: ``target`` exists, or the file system refuses.
        UserError: on all ranks, what the owner's check raised.
    """
    partial = target.parent / ".".join(["", target.name, *([owner.name] if owner else []), "partial"])
    _first_rank_then_all(lambda: _start(target, partial, owner))
    yield partial
    dist.barrier()
    _first_rank_then_all(lambda: _appear(target, partial, owner))


def _start(target: Path, partial: Path, owner: Owner | None) -> None:
    if owner is not None:
        owner.check()
    elif target.exists():
        raise FileExistsError(f"{target} exists; remove it or choose another folder")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _appear(target: Path, partial: Path, owner: Owner | None) -> None:
    if owner is None:
        partial.rename(target)
        return
    owner.check()
    aside = partial.with_suffix(".old.partial")
    if target.exists():
        target.rename(aside)
    partial.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _first_rank_then_all(action: Callable[[], object]) -> None:
    """Let global rank 0 change the file system, and let all ranks fail together when that fails."""

    def change() -> None:
        try:
            action()
        except OSError as error:
            raise CheckpointError(f"cannot write: {error}") from error

    on_first_rank(change)


def copy_hf_files(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Copy config, tokenizer and chat template; ``config.json`` then names ``dtype`` as the weights' type.

    Raises:
        ModelError: ``source`` has no ``config.json``.
    """
    if not (source / "config.json").is_file():
        raise ModelError(f"{source} has no config.json, so the model's shape and tokenizer are unknown")
    for name in HF_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    _set_dtype(target / "config.json", str(dtype).removeprefix("torch."))


def _set_dtype(path: Path, name: str) -> None:
    """Write the type under the key that the file's transformers version uses; leave a right file as it is."""
    config = json.loads(path.read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(key) != name:
        path.write_text(json.dumps({**config, key: name}, indent=2) + "\n", encoding="utf-8")
