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
        replica: all ranks that compute one batch together (tp x pp); its first rank is its leader.
        ep: ranks of this stage that hold this layer's experts, each its part. Tensor-parallel ranks, or
            ranks of several replicas, or both.
        stage: ranks of this stage that together hold all its weights: the larger of ``tp`` and ``ep``.
        copy: all ranks that together hold all weights once (stage x pp): a replica, or several replicas
            where experts are spread over more ranks than a replica has.
    """

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup
    replica: dist.ProcessGroup
    ep: dist.ProcessGroup
    stage: dist.ProcessGroup
    copy: dist.ProcessGroup

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
    def ep_size(self) -> int:
        return self.ep.size()

    @property
    def copies(self) -> int:
        """How many times the job holds the whole model."""
        return dist.get_world_size() // self.copy.size()

    @property
    def copy_index(self) -> int:
        """Which of them this rank belongs to."""
        return self.dp_rank * self.tp_size // self.stage.size()

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


def initialize_parallel(tp: int, pp: int, seed: int = 1, expert: int = 1) -> ProcessGroups:
    """Make Megatron-Core's process groups and seed its random states. The default group must exist.

    Args:
        tp, pp: tensor and pipeline parallel sizes; the rest of the world becomes data parallel.
        seed: base seed of Megatron-Core's per-rank random states (dropout and recomputation use them).
        expert: expert parallel size; the experts' own matrices are not split further. One of it and ``tp``
            must be a multiple of the other.

    Raises:
        ConfigError: the world size is not a multiple of the ranks of one copy of the model.
    """
    world = dist.get_world_size()
    ranks = max(tp, expert) * pp
    if world % ranks:
        wide = f" x expert parallel {expert}" if expert > 1 else ""
        raise ConfigError(
            f"{world} ranks cannot hold replicas of tensor parallel {tp} x pipeline parallel {pp}{wide}; "
            f"start a multiple of {ranks} ranks"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=1,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    tensor, experts = (
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_expert_model_parallel_group(),
    )
    replica = parallel_state.get_model_parallel_group()
    wider = expert > tp
    return ProcessGroups(
        tp=tensor,
        pp=parallel_state.get_pipeline_model_parallel_group(),
        dp=parallel_state.get_data_parallel_group(),
        replica=replica,
        ep=experts,
        stage=experts if wider else tensor,
        copy=parallel_state.get_expert_tensor_model_pipeline_parallel_group() if wider else replica,
    )
