"""Process groups of one training job."""

from dataclasses import dataclass

import torch.distributed as dist

from megatron_srpo.errors import ConfigError
from megatron_srpo.model.megatron_core import parallel_state, tensor_parallel


@dataclass(frozen=True)
class ProcessGroups:
    """The groups that this rank belongs to.

    Attributes:
        tp: ranks that share every layer of this pipeline stage.
        pp: the stages of this replica that hold this rank's shard.
        dp: ranks with the same weights and other data.
        replica: all ranks of one copy of the model (tp x pp); its first rank is the replica's leader.
    """

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup
    replica: dist.ProcessGroup

    @property
    def tp_size(self) -> int:
        return self.tp.size()

    @property
    def tp_rank(self) -> int:
        return self.tp.rank()

    @property
    def pp_size(self) -> int:
        return self.pp.size()

    @property
    def pp_rank(self) -> int:
        return self.pp.rank()

    @property
    def dp_size(self) -> int:
        return self.dp.size()

    @property
    def dp_rank(self) -> int:
        return self.dp.rank()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the head, and so computes the loss."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_leader(self) -> bool:
        """Whether this rank is the first of its replica."""
        return self.replica.rank() == 0


def initialize_parallel(tp: int, pp: int, seed: int = 1) -> ProcessGroups:
    """Make Megatron-Core's process groups and seed its random states. The default group must exist.

    Args:
        tp, pp: tensor and pipeline parallel sizes; the rest of the world becomes data parallel.
        seed: base seed of Megatron-Core's per-rank random states (dropout and recomputation use them).

    Raises:
        ConfigError: the world size is not a multiple of ``tp * pp``.
    """
    world = dist.get_world_size()
    if world % (tp * pp):
        raise ConfigError(
            f"{world} ranks cannot hold replicas of tensor parallel {tp} x pipeline parallel {pp}; "
            f"start a multiple of {tp * pp} ranks"
        )
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return ProcessGroups(
        tp=parallel_state.get_tensor_model_parallel_group(),
        pp=parallel_state.get_pipeline_model_parallel_group(),
        dp=parallel_state.get_data_parallel_group(),
        replica=parallel_state.get_model_parallel_group(),
    )
