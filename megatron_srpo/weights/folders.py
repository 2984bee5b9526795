"""Output folders that appear whole or not at all, and the files that travel with weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_srpo.errors import CheckpointError, ModelError

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


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that becomes ``target`` when every rank has left the block.

    A collective over all ranks. A process killed inside leaves only ``.<name>.partial``, which the next
    attempt removes.

    Raises:
        CheckpointError: ``target`` exists, or the file system refuses.
    """
    partial = target.parent / f".{target.name}.partial"
    _first_rank_then_all(lambda: _start(target, partial))
    yield partial
    dist.barrier()
    _first_rank_then_all(lambda: partial.rename(target))


def _start(target: Path, partial: Path) -> None:
    if target.exists():
        raise FileExistsError(f"{target} exists; remove it or choose another folder")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _first_rank_then_all(action: Callable[[], object]) -> None:
    """Let global rank 0 change the file system, and let all ranks fail together when that fails."""
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            failure[0] = str(error)
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise CheckpointError(f"cannot write: {failure[0]}")


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
