"""The optimizer's part of a checkpoint, in a form that does not depend on the expert parallel size.

Megatron-Core gives experts that are spread over ranks an optimizer of their own beside the one of all other
weights; experts that every rank holds whole belong to that one. Tensors are stored under the names of their
parameters either way, and the settings of the groups (learning rate, decay) are the same for both.
"""

from typing import Any

from megatron_srpo.model.megatron_core import MegatronOptimizer

_STATE, _EXPERTS = "optimizer", "expert_optimizer"


def describe_optimizer(
    optimizer: MegatronOptimizer, policy: dict[str, Any], loading: bool, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Return the sharded state of all optimizers under keys of their own.

    Args:
        policy: the sharded state of the model.
        loading: whether tensors are to be filled instead of saved.
        metadata: as Megatron-Core's ``sharded_state_dict`` takes it.
    """
    states = zip((_STATE, _EXPERTS), optimizer.chained_optimizers, strict=False)
    return {
        key: part.sharded_state_dict(policy, is_loading=loading, metadata=metadata) for key, part in states
    }


def restore_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load what :func:`describe_optimizer` described, in whatever layout it was saved."""
    everything, *experts = optimizer.chained_optimizers
    for part in experts:
        _adopt_settings(part, _inner(state[_EXPERTS]), _inner(state[_STATE]))
        part.load_state_dict(state[_EXPERTS])
    everything.load_state_dict(state[_STATE])


def _inner(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of torch's optimizer, which lies deeper where there are fp32 copies of weights."""
    return state.get("optimizer", state)


def _adopt_settings(part: Any, own: dict[str, Any], other: dict[str, Any]) -> None:
    """Give the groups of ``own`` the settings that ``other`` was saved with, and its count of steps."""
    kinds = ("wd_mult", "lr_mult")
    saved = {tuple(group[kind] for kind in kinds): group for group in other["param_groups"]}
    own["param_groups"] = [
        {
            **saved[tuple(current[kind] for kind in kinds)],
            "params": group["params"],
            "is_expert_parallel": True,
        }
        for group, current in zip(own["param_groups"], part.optimizer.param_groups, strict=True)
    ]
    if "common_step" in other["state"]:
        own["state"]["common_step"] = other["state"]["common_step"]
