"""Loading the distributed optimizer's state where Adam is PyTorch's own.

Megatron-Core loads it for the Adam of Transformer Engine or Apex, neither of which exists without CUDA: its
loader asks for a ``step`` that it has put elsewhere, writes into a leaf that wants a gradient, and gives all
parameters one and the same step counter.
"""

from typing import Any

import torch


@torch.no_grad()
def _set_states(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
    group, order = self.model_param_group_index_map[model_param]
    main_param = self.optimizer.param_groups[group]["params"][order]
    state = self.optimizer.state[main_param]
    main_param.copy_(tensors["param"])
    for name in ("exp_avg", "exp_avg_sq"):
        state[name].copy_(tensors[name])
    state["step"] = state["step"].clone()


def replace() -> None:
    """Answer the loader, unless there is an Adam that it was written for."""
    from megatron.core.optimizer import distrib_optimizer

    if not distrib_optimizer.HAVE_APEX_OR_TE:
        distrib_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states = _set_states
