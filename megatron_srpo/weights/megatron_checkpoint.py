"""Weights alone as a Megatron-Core distributed checkpoint, which any layout can load.

A folder holds ``weights/`` (Megatron-Core's files), ``checkpoint.json`` (architecture, type, versions) and,
from the Hugging Face folder, ``config.json`` and the tokenizer.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_srpo.errors import CheckpointError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.chunks import policies, sharded_state
from megatron_srpo.model.megatron_core import (
    ShardedObject,
    dist_checkpointing,
    load_sharded_metadata,
    parallel_state,
    version,
)
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.folders import copy_hf_files, new_folder

INFO_FILE = "checkpoint.json"
WEIGHTS = "weights"
FORMAT = 1
_FINISHED = "metadata.json"  # Megatron-Core writes it last
_LAYER_STATE = "._extra_state"  # PyTorch's name; Megatron-Core numbers those of experts
_EMBEDDING = "embedding.word_embeddings.weight"


def save_megatron(
    model: torch.nn.Module,
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    target: str | Path,
    hf_files: str | Path,
) -> None:
    """Write the model's weights. A collective over all ranks; the folder appears when it is whole.

    Megatron-Core starts helper processes here, so the program needs an ``if __name__ == "__main__"`` guard.

    Args:
        hf_files: folder with ``config.json`` and the tokenizer that belong to the model.

    Raises:
        CheckpointError: ``target`` exists or cannot be written.
        ModelError: ``hf_files`` has no ``config.json``.
    """
    dtype = next(model.parameters()).dtype
    with new_folder(Path(target)) as folder:
        if dist.get_rank() == 0:
            copy_hf_files(Path(hf_files), folder, dtype)
            (folder / WEIGHTS).mkdir()
            info = json.dumps(_info(arch, groups, dtype), indent=2) + "\n"
            (folder / INFO_FILE).write_text(info, encoding="utf-8")
        dist.barrier()
        state = sharded_state(model, _metadata())
        dist_checkpointing.save(state, str(folder / WEIGHTS), sharded_strategy=("torch_dist", 1))


def load_megatron(model: torch.nn.Module, folder: str | Path) -> None:
    """Fill this rank's shard from a checkpoint that any layout wrote. A collective over all ranks.

    Checkpoints of training runs can be read too: what is not policy weights is left alone.

    Raises:
        CheckpointError: not a finished checkpoint, unreadable, or of another model.
    """
    weights = weights_folder(folder)
    try:
        state = without_missing_states(sharded_state(model, _metadata()), weights)
        loaded = dist_checkpointing.load(state, str(weights))
    # Boundary to Megatron-Core and torch, which report a damaged file in a dozen ways (one of them,
    # torch's CheckpointException, is no Exception).
    except (Exception, torch.distributed.checkpoint.CheckpointException) as error:
        raise CheckpointError(
            f"{weights} is damaged or belongs to another model: {short_cause(error)}"
        ) from error
    restore_weights(model, loaded)  # a training run's checkpoint brings its common part along


def without_missing_states(state: dict[str, dict[str, Any]], weights: Path) -> dict[str, dict[str, Any]]:
    """Leave out what layers keep beside their weights (scales of FP8) where a checkpoint does not have it.

    Layers of Transformer Engine have such a state, mostly empty, in more places than local ones; their
    weights are stored under the same names.
    """
    stored = load_sharded_metadata(str(weights))
    return {
        chunk: {
            name: value
            for name, value in own.items()
            if not isinstance(value, ShardedObject) or value.unique_key in stored
        }
        for chunk, own in state.items()
    }


def restore_weights(model: torch.nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Load what was described by ``sharded_state``; it may lack what layers keep beside their weights.

    Raises:
        CheckpointError: a weight is missing, or belongs to no layer.
    """
    for number, policy in enumerate(policies(model)):
        difference = policy.load_state_dict(state[str(number)], strict=False)
        names = [*difference.missing_keys, *difference.unexpected_keys]
        wrong = [name for name in names if _LAYER_STATE not in name]
        if wrong:
            raise CheckpointError(f"the checkpoint and the model disagree about {', '.join(wrong)}")


def weights_folder(folder: str | Path) -> Path:
    """Return where Megatron-Core's files lie: in ``weights/``, or in the folder itself for training runs.

    Raises:
        CheckpointError: there is no finished checkpoint in either place.
    """
    for candidate in (Path(folder) / WEIGHTS, Path(folder)):
        if (candidate / _FINISHED).is_file():
            return candidate
    raise CheckpointError(f"{folder} holds no finished Megatron checkpoint (no {_FINISHED}); choose another")


def stored_dtype(folder: str | Path) -> torch.dtype:
    """Return the type in which a checkpoint's weights are stored.

    Raises:
        CheckpointError: not a finished checkpoint, or one of another kind of model.
    """
    return _stored_embedding(folder).dtype


def check_architecture(folder: str | Path, arch: Qwen3Architecture) -> None:
    """Refuse a checkpoint that was written for another architecture.

    Megatron-Core compares shapes itself, but not the vocabulary (whose padding may differ), nor constants.

    Raises:
        CheckpointError: names the first field that differs.
    """
    rows = _stored_embedding(folder).global_shape[0]
    if rows < arch.vocab_size:
        raise CheckpointError(
            f"{folder} has {rows} vocabulary rows, config.json asks for {arch.vocab_size}; "
            "give the config.json of the checkpoint's own model"
        )
    path = Path(folder) / INFO_FILE
    if path.is_file():
        _compare(_read_info(path), arch, path)


def _compare(stored: dict[str, Any], arch: Qwen3Architecture, path: Path) -> None:
    # As JSON reads it back: lists for tuples.
    for field, value in json.loads(json.dumps(dataclasses.asdict(arch))).items():
        if stored.get(field) != value:
            raise CheckpointError(
                f"{path} says {field} = {stored.get(field)!r}, config.json gives {value!r}; "
                "give the config.json of the checkpoint's own model"
            )


def _read_info(path: Path) -> dict[str, Any]:
    """Return the architecture recorded in ``checkpoint.json``."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        number, architecture = info["format"], dict(info["architecture"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); convert the model again") from error
    if number != FORMAT:
        raise CheckpointError(f"{path} has format {number!r}, this program reads {FORMAT}; convert again")
    return architecture


def _stored_embedding(folder: str | Path) -> Any:
    """Return Megatron-Core's description of the stored embedding (type and global shape)."""
    weights = weights_folder(folder)
    try:
        tensors = dist_checkpointing.load_tensors_metadata(str(weights))
    except Exception as error:  # boundary to Megatron-Core and torch: a damaged index fails in many ways
        raise CheckpointError(
            f"{weights} is damaged: {short_cause(error)}; convert the model again"
        ) from error
    if _EMBEDDING not in tensors:
        raise CheckpointError(f"{weights} has no tensor {_EMBEDDING}; it is not a checkpoint of a GPT model")
    return tensors[_EMBEDDING]


def _metadata() -> dict[str, Any]:
    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def _info(arch: Qwen3Architecture, groups: ProcessGroups, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "architecture": dataclasses.asdict(arch),
        "dtype": str(dtype).removeprefix("torch."),
        "written_by": {
            "megatron_core": version,
            "tensor_parallel": groups.tp_size,
            "pipeline_parallel": groups.pp_size,
            "expert_parallel": groups.ep_size,
        },
    }


def short_cause(error: BaseException) -> str:
    """Say in one line what Megatron-Core or PyTorch did not find; they list whole state dicts."""
    if isinstance(error, torch.distributed.checkpoint.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line if len(line) <= 160 else line[:160] + '...'}"
