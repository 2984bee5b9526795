"""The optimizer's part of a checkpoint, in a form that does not depend on the expert parallel size.

Megatron-Core gives experts that are spread over ranks an optimizer of their own beside the one of all other
weights; experts that every rank holds whole belong to that one. Tensors are stored under the names of their
parameters either way, and the settings of the groups (learning rate, decay) are the same for both.
"""

from typing import Any

from megatron_srpo.model.megatron_core import DistributedOptimizer, MegatronOptimizer

_STATE, _EXPERTS = "optimizer", "expert_optimizer"
#: How a distributed optimizer says in which form its tensors are stored.
_FORM = "param_state_sharding_type"


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
        own, other = state[_EXPERTS], state[_STATE]
        if _FORM in other:
            own[_FORM] = other[_FORM]
        _adopt_settings(part, _inner(part, own), _inner(everything, other))
        part.load_state_dict(own)
    everything.load_state_dict(state[_STATE])


def _inner(part: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of torch's optimizer, which lies deeper where there are fp32 copies of weights.

    A distributed optimizer stores the settings apart from the tensors: of experts, perhaps none.
    """
    if isinstance(part, DistributedOptimizer):
        return state.setdefault("optimizer", {})
    return state.get("optimizer", state)


def _adopt_settings(part: Any, own: dict[str, Any], other: dict[str, Any]) -> None:
    """Give the groups of ``own`` the settings that ``other`` was saved with, and its count of steps."""
    kinds = ("wd_mult", "lr_mult")
    saved = {tuple(group[kind] for kind in kinds): group for group in other["param_groups"]}
    current = part.optimizer.param_groups
    stored = own.get("param_groups") or [{}] * len(current)
    own["param_groups"] = [
        {
            **saved[tuple(group[kind] for kind in kinds)],
            **{name: value for name, value in before.items() if name == "params"},
            "is_expert_parallel": True,
        }
        for before, group in zip(stored, current, strict=True)
    ]
    if "common_step" in other.get("state", {}):
        own["state"]["common_step"] = other["state"]["common_step"]
