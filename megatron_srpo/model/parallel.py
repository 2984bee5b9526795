"""Process groups of one training job."""

from dataclasses import dataclass
from itertools import chain

import torch.distributed as dist

from megatron_srpo.errors import ConfigError
from megatron_srpo.model.megatron_core import parallel_state, tensor_parallel
from megatron_srpo.model.packing import TokenSplit
from megatron_srpo.model.stages import PipelineStages


@dataclass(frozen=True)
class ProcessGroups:
    """The groups that this rank belongs to.

    Attributes:
        tp: ranks that share every layer of this pipeline stage.
        pp: the stages of this replica that hold this rank's shard.
        cp: ranks that share the tokens of every sequence, and have the same weights.
        dp: ranks with the same weights and other data.
        dp_cp: all ranks with the same weights.
        replica: all ranks (tp x cp x pp) that work on the same data; its first rank is the replica's leader.
        ep: ranks of this stage that hold this layer's experts, each its part. Tensor-parallel ranks, or
            ranks of several replicas, or both.
        expert_copies: all ranks with the same experts: ``dp_cp`` where experts are not spread.
        stage: ranks of this stage that together hold all its weights: the larger of ``tp`` and ``ep``.
        copy: all ranks that together hold all weights once (stage x pp): a replica or, with context
            parallelism, a part of one; or several replicas where experts are spread over more ranks.
        sequence: sequence parallelism: the tensor-parallel ranks share the tokens between the split layers.
        stages: how layers are dealt to the ranks of ``pp``.
        alignment: what the number of tokens of a micro-batch on this rank is padded to a multiple of.
    """

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    cp: dist.ProcessGroup
    dp: dist.ProcessGroup
    dp_cp: dist.ProcessGroup
    replica: dist.ProcessGroup
    ep: dist.ProcessGroup
    expert_copies: dist.ProcessGroup
    stage: dist.ProcessGroup
    copy: dist.ProcessGroup
    sequence: bool = False
    stages: PipelineStages = PipelineStages()
    alignment: int = 1

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
    def cp_size(self) -> int:
        return self.cp.size()

    @property
    def cp_rank(self) -> int:
        return self.cp.rank()

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
    def replicas_share_experts(self) -> bool:
        """Whether this replica holds a part of its experts only, and meets others in every layer of them."""
        return self.stage.size() > self.tp_size * self.cp_size

    @property
    def copies(self) -> int:
        """How many copies of the weights are handed out: one of each replica, or one of several replicas."""
        return dist.get_world_size() // (self.copy.size() * self._copies_of_a_replica)

    @property
    def copy_index(self) -> int:
        """Which of them is that of this rank's replica."""
        return self._copy_number // self._copies_of_a_replica

    @property
    def sends(self) -> bool:
        """Whether this rank's own copy is the one; context-parallel ranks hold more of them."""
        return self._copy_number % self._copies_of_a_replica == 0

    @property
    def _copies_of_a_replica(self) -> int:
        return max(1, self.tp_size * self.cp_size // self.stage.size())

    @property
    def _copy_number(self) -> int:
        place = (self.dp_rank * self.cp_size + self.cp_rank) * self.tp_size + self.tp_rank
        return place // self.stage.size()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding (in its first chunk, where there are several)."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the head (in its last chunk), and so computes the loss."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_leader(self) -> bool:
        """Whether this rank is the first of its replica."""
        return self.replica.rank() == 0

    @property
    def split(self) -> TokenSplit:
        """How a packed row lies on this replica's ranks."""
        shares = self.tp_size if self.sequence else 1
        return TokenSplit(self.cp_rank, self.cp_size, shares, self.alignment)


def initialize_parallel(
    tp: int,
    pp: int | PipelineStages,
    seed: int = 1,
    *,
    cp: int = 1,
    expert: int = 1,
    sequence: bool = False,
    alignment: int = 1,
) -> ProcessGroups:
    """Make Megatron-Core's process groups and seed its random states. The default group must exist.

    Args:
        tp, pp, cp: tensor, pipeline and context parallel sizes; the rest of the world becomes data parallel.
            A number of pipeline stages stands for equal ones in one piece.
        seed: base seed of Megatron-Core's per-rank random states (dropout and recomputation use them).
        expert: expert parallel size; the experts' own matrices are not split further. One of it and ``tp``
            must be a multiple of the other.
        sequence: sequence parallelism, where there is more than one tensor-parallel rank.
        alignment: as for :class:`ProcessGroups`.

    Raises:
        ConfigError: the world size is not a multiple of the ranks of a replica, or of a copy of the model.
    """
    stages = pp if isinstance(pp, PipelineStages) else PipelineStages(pp)
    world, pp = dist.get_world_size(), stages.size
    ranks = max(tp * cp, expert) * pp
    if world % ranks:
        wide = f" x context parallel {cp}" if cp > 1 else ""
        wide += f" x expert parallel {expert}" if expert > 1 else ""
        raise ConfigError(
            f"{world} ranks cannot hold replicas of tensor parallel {tp} x pipeline parallel {pp}{wide}; "
            f"start a multiple of {ranks} ranks"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=stages.chunks if stages.interleaved else None,
        context_parallel_size=cp,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=1,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    tensor, experts = (
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_expert_model_parallel_group(),
    )
    shards = parallel_state.get_model_parallel_group()
    wider = expert > tp
    return ProcessGroups(
        tp=tensor,
        pp=parallel_state.get_pipeline_model_parallel_group(),
        cp=parallel_state.get_context_parallel_group(),
        dp=parallel_state.get_data_parallel_group(),
        dp_cp=parallel_state.get_data_parallel_group(with_context_parallel=True),
        replica=_replica_group(),
        ep=experts,
        expert_copies=parallel_state.get_expert_data_parallel_group(),
        stage=experts if wider else tensor,
        copy=parallel_state.get_expert_tensor_model_pipeline_parallel_group() if wider else shards,
        sequence=sequence and tp > 1,
        stages=stages,
        alignment=alignment,
    )


def leave_parallel() -> None:
    """Forget Megatron-Core's process groups, so that this process may make others for another model."""
    parallel_state.destroy_model_parallel()


def _replica_group() -> dist.ProcessGroup:
    """Join the copies of the weights that one context-parallel group works with; Megatron-Core has no such
    group."""
    shards = parallel_state.get_model_parallel_group()
    if parallel_state.get_context_parallel_world_size() == 1:
        return shards
    own = (parallel_state.get_data_parallel_rank(), dist.get_rank())
    everyone: list[tuple[int, int]] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    replicas = [[rank for dp, rank in everyone if dp == number] for number in range(1 + max(everyone)[0])]
    group, _ = dist.new_subgroups_by_enumeration(replicas)
    assert group is not None and sorted(chain(*replicas)) == list(range(len(everyone)))
    return group
