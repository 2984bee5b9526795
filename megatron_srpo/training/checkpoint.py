"""Checkpoints of a whole run through Megatron-Core's distributed checkpointing.

A checkpoint is a folder ``step_00000020`` with the sharded policy, optimizer, teacher average and random
states, and the common part: scheduler and progress. It is written under a temporary name and renamed when
every rank has finished, so that a folder with the final name is always whole.
"""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException

from megatron_srpo import platform
from megatron_srpo.errors import CheckpointError
from megatron_srpo.model.chunks import sharded_parameters, sharded_state
from megatron_srpo.model.megatron_core import (
    CheckpointingException,
    ShardedObject,
    dist_checkpointing,
    force_all_tensors_to_non_fp8,
    make_sharded_optimizer_tensor,
    tensor_parallel,
)
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.training.average import SavedAverage, TeacherAverage
from megatron_srpo.training.optimizer_state import describe_optimizer, restore_optimizer
from megatron_srpo.training.trainer import Trainer
from megatron_srpo.weights.agreement import on_first_rank
from megatron_srpo.weights.folders import Owner, new_folder
from megatron_srpo.weights.megatron_checkpoint import restore_weights, short_cause, without_missing_states

_NAME = re.compile(r"step_(\d{8})")
_FINISHED = "metadata.json"  # Megatron-Core writes it last


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return where the checkpoint of ``step`` lies."""
    return root / f"step_{step:08d}"


def checkpoint_step(folder: Path) -> int | None:
    """Return the step of a checkpoint by the name of its folder; None for any other folder."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def finished_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """List whole checkpoints as (step, folder), oldest first."""
    if not root.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in root.iterdir()]
    whole = [(int(match[1]), path) for match, path in found if match and (path / _FINISHED).is_file()]
    return sorted(whole)


def save_checkpoint(
    root: Path,
    step: int,
    trainer: Trainer,
    progress: dict[str, Any],
    keep: int,
    owner: Owner | None = None,
) -> Path:
    """Save the run after ``step`` steps, then delete all but the newest ``keep``. A collective.

    Args:
        progress: plain data that the loop needs to go on (position, clocks); the same on every rank.
        owner: of the run folder, see :func:`~megatron_srpo.weights.folders.new_folder`.

    Raises:
        CheckpointError: the folder cannot be written.
        FenceError: on all ranks, the folder has become another's.
    """
    final = checkpoint_folder(root, step)
    state = _state(trainer, loading=False)
    force_all_tensors_to_non_fp8(state["policy"])  # not sooner: the optimizer knows its weights by identity
    state["progress"] = {"step": step, **progress}
    state["layout"] = _layout(trainer.groups)
    with new_folder(final, owner) as folder, platform.deaf_children():
        dist_checkpointing.save(state, str(folder), sharded_strategy=("torch_dist", 1))
    on_first_rank(lambda: _keep_newest(root, keep, owner))
    return final


def load_checkpoint(folder: Path, trainer: Trainer) -> dict[str, Any]:
    """Restore policy, optimizer, scheduler, teacher and (in the same layout) random states.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: the folder is no whole checkpoint of this model.
    """
    state = _load(folder, trainer, ())
    restore_weights(trainer.policy, state["policy"])
    restore_optimizer(trainer.optimizer.optimizer, state)
    trainer.optimizer.leave_device()
    trainer.optimizer.scheduler.load_state_dict(state["scheduler"])
    if trainer.teacher.average is not None:
        trainer.teacher.average.restore(state.get("teacher", {}))
    if "random" in state:
        _restore_random_states(state["random"])
    return state["progress"]


def load_weights(folder: Path, trainer: Trainer) -> None:
    """Begin with the weights of another run of the same model; moments and schedule begin anew. A collective.

    Unlike an exported model, the checkpoint holds what the optimizer kept in fp32: at small learning rates
    most of what a bf16 policy has learnt is not visible in bf16 yet.

    Raises:
        CheckpointError: the folder is no whole checkpoint of this model.
    """
    state = _load(folder, trainer, without=("scheduler", "random", "teacher"))
    restore_weights(trainer.policy, state["policy"])
    restore_optimizer(trainer.optimizer.optimizer, state)
    trainer.optimizer.forget()
    trainer.optimizer.leave_device()


def _load(folder: Path, trainer: Trainer, without: tuple[str, ...]) -> dict[str, Any]:
    """Read a checkpoint's parts, but for those named in ``without``."""
    if not (folder / _FINISHED).is_file():
        raise CheckpointError(
            f"{folder} is not a finished checkpoint; choose another or start without --resume"
        )
    try:
        wanted = {name: part for name, part in _state(trainer, loading=True).items() if name not in without}
        wanted["policy"] = without_missing_states(wanted["policy"], folder)
        if dist_checkpointing.load_common_state_dict(str(folder))["layout"] != _layout(trainer.groups):
            # Random states belong to ranks that no longer exist; nothing in training draws from them today.
            wanted.pop("random", None)
        return dist_checkpointing.load(wanted, str(folder))
    except (KeyError, ValueError, RuntimeError, CheckpointingException, CheckpointException) as error:
        raise CheckpointError(
            f"{folder} does not fit this run: {short_cause(error)}. Resume with the model and teacher it was "
            "saved with, or start a new run"
        ) from error


def _state(trainer: Trainer, loading: bool) -> dict[str, Any]:
    """Describe the run's tensors on this rank; loading fills them in place."""
    metadata = {
        "dp_cp_group": trainer.groups.dp_cp,
        # The one form of the distributed optimizer's state that every other layout can read.
        "distrib_optim_sharding_type": "fully_reshardable",
    }
    trainer.optimizer.make_state()
    policy = sharded_state(trainer.policy, metadata)
    state: dict[str, Any] = {
        "policy": policy,
        **describe_optimizer(trainer.optimizer.optimizer, policy, loading, metadata),
        "scheduler": trainer.optimizer.scheduler.state_dict(),
        "random": _random_states(trainer.groups),
    }
    teacher = trainer.teacher
    if teacher.average is not None and teacher.copy is not None:
        state["teacher"] = _average_state(teacher.copy, teacher.average, metadata, loading)
    return state


def _average_state(
    copy: torch.nn.Module, average: TeacherAverage, metadata: dict[str, Any], loading: bool
) -> dict[str, Any]:
    """Describe the fp32 average by the sharding of the model that it belongs to."""
    sharded = sharded_parameters(copy, metadata)
    parts = average.to_load() if loading else average.to_save()
    return {name: _sharded_average(sharded[name], part) for name, part in parts.items()}


def _sharded_average(parameter: Any, part: SavedAverage) -> Any:
    described = make_sharded_optimizer_tensor(parameter, part.values, prefix="teacher.average")
    if part.replica is None:
        return described
    # The last place of a parameter's replica number counts the ranks that hold the same.
    return dataclasses.replace(described, replica_id=(*described.replica_id[:-1], part.replica))


def _random_states(groups: ProcessGroups) -> ShardedObject:
    """Describe this rank's random states; every rank saves its own."""
    states = {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    shape = (groups.pp_size, groups.tp_size, groups.dp_cp.size())
    return ShardedObject(
        "random", states, shape, (groups.pp_rank, groups.tp_rank, groups.dp_cp.rank()), replica_id=0
    )


def _layout(groups: ProcessGroups) -> list[int | None]:
    stages = dataclasses.astuple(groups.stages)
    return [groups.tp_size, groups.dp_size, groups.cp_size, *stages]


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state(states["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(states["tracker"])


def _keep_newest(root: Path, keep: int, owner: Owner | None) -> None:
    if owner is not None:
        owner.check()  # another may be reading what this one would delete
    for _, old in finished_checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
