"""A Hugging Face folder out of Megatron shards."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_srpo.errors import CheckpointError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.folders import Owner, copy_hf_files, new_folder
from megatron_srpo.weights.gather import hf_tensors
from megatron_srpo.weights.hf_files import write_files
from megatron_srpo.weights.table import Shape, hf_shapes

Progress = Callable[[int, int], None]

DEFAULT_FILE_BYTES = 4 << 30


def save_hf(
    model: torch.nn.Module,
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    target: str | Path,
    hf_files: str | Path,
    dtype: torch.dtype | None = None,
    max_file_bytes: int = DEFAULT_FILE_BYTES,
    progress: Progress | None = None,
    owner: Owner | None = None,
) -> None:
    """Write ``model`` as a folder that ``AutoModelForCausalLM`` loads. A collective over all ranks.

    No rank holds more than its shard and one tensor: rank 0 writes each tensor as it is gathered.

    Args:
        hf_files: folder with ``config.json`` and the tokenizer that belong to the model.
        dtype: of the written tensors; the model's own by default.
        max_file_bytes: size at which another safetensors file is begun.
        progress: called with (tensors done, tensors in all).
        owner: of the folder, see :func:`~megatron_srpo.weights.folders.new_folder`.

    Raises:
        CheckpointError: ``target`` exists or cannot be written.
        ModelError: ``hf_files`` has no ``config.json``.
    """
    dtype = dtype or next(model.parameters()).dtype
    shapes = hf_shapes(arch)
    with new_folder(Path(target), owner) as folder:
        tensors = _reporting(hf_tensors(model, arch, groups, dtype), len(shapes), progress)
        if dist.get_rank() == 0:
            _write(folder, Path(hf_files), tensors, shapes, dtype, max_file_bytes)
        for _ in tensors:  # rank 0 has already consumed them; the others take part in the gathering
            pass


def _write(
    folder: Path,
    hf_files: Path,
    tensors: Iterator[tuple[str, torch.Tensor]],
    shapes: dict[str, Shape],
    dtype: torch.dtype,
    max_file_bytes: int,
) -> None:
    try:
        copy_hf_files(hf_files, folder, dtype)
        write_files(folder, tensors, shapes, dtype, max_file_bytes)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}; free space or choose another folder"
        ) from error


def _reporting(
    tensors: Iterator[tuple[str, torch.Tensor]], total: int, progress: Progress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for done, item in enumerate(tensors, start=1):
        yield item
        if progress is not None:
            progress(done, total)
