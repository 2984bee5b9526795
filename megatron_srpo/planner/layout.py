"""How a model is spread over GPUs, and what forbids a layout."""

from dataclasses import dataclass

from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.planner.shape import ModelShape

RECOMPUTE = ("none", "selective", "full")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "fp8": 2}


@dataclass(frozen=True)
class Layout:
    """Parallel sizes and what decides memory. Ranks are ordered as Megatron-Core's: TP, CP, DP, PP.

    Attributes:
        virtual_pipeline: model chunks per pipeline stage (interleaved schedule); 1: none.
        expert: ranks that share the experts of a layer; taken from the ranks of TP x CP x DP.
        data: replicas of TP x PP x CP ranks.
        sequence: Megatron's sequence parallelism (needs TP above 1).
        recompute: none; selective: core attention; full: every layer is computed again in backward.
        distributed_optimizer: optimizer state is split over data-parallel and context-parallel ranks.
        offload_optimizer: it lies in host memory and comes to the GPU for the optimizer's step.
        offload_teacher: the teacher's weights and their average lie there as well.
        first_stage_layers, last_stage_layers: layers of these stages where they differ from the others.
        dtype: of weights and activations; fp8 keeps bf16 weights and multiplies in FP8.
        kernels: whose saved tensors count: transformer_engine, or local (this project's CPU layer spec).
    """

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1
    sequence: bool = False
    recompute: str = "none"
    distributed_optimizer: bool = True
    offload_optimizer: bool = False
    offload_teacher: bool = False
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    dtype: str = "bfloat16"
    kernels: str = "transformer_engine"

    @property
    def replica_gpus(self) -> int:
        """GPUs of one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def gpus(self) -> int:
        """All GPUs that train."""
        return self.replica_gpus * self.data

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight or activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def copies(self) -> int:
        """How many ranks hold a dense parameter, of those that train the same shard."""
        return self.data * self.context

    @property
    def expert_copies(self) -> int:
        """How many ranks hold an expert."""
        return max(1, self.tensor * self.context * self.data // self.expert)

    @property
    def shared_by(self) -> int:
        """Over how many ranks the optimizer state of a dense parameter is split."""
        return self.copies if self.distributed_optimizer else 1

    @property
    def experts_shared_by(self) -> int:
        """Over how many ranks the optimizer state of an expert is split."""
        return self.expert_copies if self.distributed_optimizer else 1

    @property
    def stages(self) -> PipelineStages:
        """The pipeline's stages."""
        ends = (self.first_stage_layers, self.last_stage_layers)
        return PipelineStages(self.pipeline, self.virtual_pipeline, *ends)

    def stage_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the number of layers of each pipeline stage (see :func:`obstacle` for what must divide)."""
        return self.stages.layer_counts(num_layers)

    def __str__(self) -> str:
        parts = [f"TP{self.tensor}", f"PP{self.pipeline}"]
        if self.first_stage_layers is not None or self.last_stage_layers is not None:
            ends = {"first": self.first_stage_layers, "last": self.last_stage_layers}
            parts.append(
                f"({', '.join(f'{name} {size}' for name, size in ends.items() if size is not None)})"
            )
        parts += [f"VPP{self.virtual_pipeline}"] if self.virtual_pipeline > 1 else []
        parts += [f"CP{self.context}"] if self.context > 1 else []
        parts += [f"EP{self.expert}"] if self.expert > 1 else []
        parts += [f"DP{self.data}"]
        parts += ["SP"] if self.sequence else []
        parts += [f"recompute {self.recompute}"] if self.recompute != "none" else []
        parts += ["optimizer offload"] if self.offload_optimizer else []
        parts += ["teacher offload"] if self.offload_teacher else []
        return " ".join(parts)


@dataclass(frozen=True)
class Obstacle:
    """Why a layout cannot be used.

    Attributes:
        reason: a short name, the same for all layouts that fail alike.
        message: what was wrong, with the values.
        miss: how far it misses, as a ratio (1.1: a tenth too much); inf where no size is to blame.
    """

    reason: str
    message: str
    miss: float = float("inf")


def obstacle(shape: ModelShape, layout: Layout) -> Obstacle | None:
    """Return what makes it impossible to split the model like this, or None."""
    checks = (_heads(shape, layout), _layers(shape, layout), _experts(shape, layout))
    return next((found for found in checks if found is not None), None)


def _heads(shape: ModelShape, layout: Layout) -> Obstacle | None:
    sizes = {"key/value heads": shape.num_kv_heads, "attention heads": shape.num_heads}
    if not shape.is_moe:
        sizes["feed-forward units"] = shape.ffn_hidden_size
    for what, size in sizes.items():
        if size % layout.tensor:
            return Obstacle(f"TP does not divide {what}", f"TP {layout.tensor} does not divide {size} {what}")
    if layout.sequence and layout.tensor == 1:
        return Obstacle("SP without TP", "sequence parallelism needs TP above 1")
    if shape.is_moe and layout.tensor > 1 and not layout.sequence:
        return Obstacle("MoE with TP needs SP", f"experts with TP {layout.tensor} need sequence parallelism")
    return None


def _layers(shape: ModelShape, layout: Layout) -> Obstacle | None:
    sizes = layout.stage_layers(shape.num_layers)
    if sum(sizes) != shape.num_layers or min(sizes) < 1:
        return Obstacle(
            "PP does not divide the layers",
            f"{shape.num_layers} layers do not fill {layout.pipeline} stages evenly; give the first or last "
            "stage another number of layers",
        )
    if layout.virtual_pipeline > 1:
        if layout.pipeline == 1:
            return Obstacle("VPP without PP", "a virtual pipeline needs PP above 1")
        if any(size % layout.virtual_pipeline for size in sizes):
            return Obstacle(
                "VPP does not divide a stage's layers",
                f"{layout.virtual_pipeline} chunks do not divide stages of {sizes[0]} layers",
            )
    return None


def _experts(shape: ModelShape, layout: Layout) -> Obstacle | None:
    if layout.expert == 1:
        return None
    if not shape.is_moe:
        return Obstacle("EP on a dense model", f"EP {layout.expert}: {shape.name} has no experts")
    if shape.num_experts % layout.expert:
        return Obstacle(
            "EP does not divide the experts",
            f"EP {layout.expert} does not divide {shape.num_experts} experts",
        )
    ranks = layout.tensor * layout.context * layout.data
    if ranks % layout.expert:
        return Obstacle(
            "EP does not divide TP x CP x DP", f"EP {layout.expert} does not divide TP x CP x DP = {ranks}"
        )
    return None
