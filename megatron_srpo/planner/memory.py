"""Memory of one GPU by part, at the fullest moment of a training step."""

from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

from megatron_srpo.planner.activations import layer_bytes, stage_bytes, working_bytes
from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import Gpu
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.parameters import Parameters, rank_parameters
from megatron_srpo.planner.shape import ModelShape
from megatron_srpo.planner.workload import Workload

#: Bytes of one bucket of a weight synchronisation; a rank that assembles holds two (config/sync.py).
SYNC_BUCKET_BYTES = 512 << 20
#: Bytes of an offloaded optimizer's state that are on the device at once (training/host_adam.py).
VISITING_BYTES = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank of one pipeline stage, by part.

    Attributes:
        weights: of the policy, as they are multiplied with.
        gradients: Megatron-Core's fp32 buffer.
        optimizer: Adam's moments, and fp32 main weights where the policy is not fp32.
        teacher: the copy that computes, and this rank's part of the fp32 average of mode ema where the copy
            is not fp32.
        reference: the initial policy, where a KL penalty is on.
        lessons: what the last stage keeps of the teacher during the update: head and hidden states.
        activations: of the micro-batches in flight.
        loss: logits, their gradients and the head's gradient.
        working: what a layer's backward pass needs beyond that (by then, the loss's memory is free).
        buffers: collectives, weight synchronisation, CUDA context.
        visiting: from host memory for a moment: state for the optimizer's step, or the teacher for its pass.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    teacher: float = 0.0
    reference: float = 0.0
    lessons: float = 0.0
    activations: float = 0.0
    loss: float = 0.0
    working: float = 0.0
    buffers: float = 0.0
    visiting: float = 0.0

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(asdict(self).values())

    @property
    def resident(self) -> float:
        """What stays on the GPU between updates, so also while a colocated server samples."""
        return self.weights + self.gradients + self.optimizer + self.teacher + self.reference + self.buffers


PARTS = tuple(one.name for one in fields(Memory))


def usable_bytes(gpu: Gpu, assumptions: Assumptions) -> float:
    """Return what of a GPU's memory a process can fill."""
    return gpu.memory_bytes * (1.0 - assumptions.fragmentation)


def optimizer_bytes(parameters: Parameters, layout: Layout) -> float:
    """Return Adam's fp32 moments and, beside bf16 weights, fp32 main weights, of one rank."""
    each = 8 if layout.dtype == "float32" else 12
    return each * (parameters.dense / layout.shared_by + parameters.experts / layout.experts_shared_by)


def weight_bytes(parameters: Parameters, layout: Layout) -> float:
    """Return the policy's weights; FP8 keeps two copies more of each matrix (as is, and transposed)."""
    fp8 = 2 * parameters.matrices if layout.dtype == "fp8" else 0
    return layout.element_bytes * parameters.total + fp8


def teacher_bytes(parameters: Parameters, layout: Layout, mode: str) -> float:
    """Return what the self-teacher adds in one of its modes (training/teacher.py)."""
    copy = layout.element_bytes * parameters.total
    own = parameters.dense / layout.copies + parameters.experts / layout.expert_copies
    average = 0 if layout.dtype == "float32" else 4 * own
    return {"none": 0, "live": 0, "frozen": copy, "trust_region": copy, "ema": copy + average}[mode]


def stage_memory(
    shape: ModelShape,
    layout: Layout,
    workload: Workload,
    assumptions: Assumptions,
    stage: int,
    vocab_multiple: int = 128,
    device: str = "cuda",
) -> Memory:
    """Predict one rank of pipeline stage ``stage`` at its fullest: while it updates the policy, or while
    something is there for which there is no room all the time.

    Args:
        device: "cuda", or "cpu" for what a test on this machine measures: no buffers, other chunks.
    """
    parameters = rank_parameters(shape, layout, stage, vocab_multiple)
    tokens = workload.micro_batch_tokens
    per_replica = workload.sequences / workload.optimizer_steps / layout.data
    count = workload.micro_batches(per_replica, workload.sequence_tokens, assumptions.packing_fill)
    last = stage == layout.pipeline - 1
    loss = _loss(shape, layout, workload, vocab_multiple, device) if last else 0.0
    on_host = host_bytes(parameters, layout, workload.teacher)
    stays = Memory(
        weights=weight_bytes(parameters, layout),
        gradients=4 * parameters.total,
        optimizer=optimizer_bytes(parameters, layout) - on_host.optimizer,
        teacher=teacher_bytes(parameters, layout, workload.teacher) - on_host.teacher,
        reference=layout.element_bytes * parameters.total if workload.reference else 0.0,
        lessons=_lessons(shape, layout, workload, vocab_multiple) if last else 0.0,
        buffers=_buffers(assumptions, workload) if device == "cuda" else 0.0,
    )
    updating = replace(
        stays,
        activations=stage_bytes(shape, layout, stage, tokens, count),
        loss=loss,
        working=max(0.0, working_bytes(shape, layout, tokens) - loss),
    )
    stepping = replace(stays, visiting=_visiting_state(shape, parameters, layout) if on_host.optimizer else 0)
    teaching = replace(
        stays,
        visiting=layout.element_bytes * parameters.total if on_host.teacher else 0,
        working=layer_bytes(shape, layout, tokens),
    )
    return max((updating, stepping, teaching), key=lambda moment: moment.total)


@dataclass(frozen=True)
class HostMemory:
    """Bytes that one rank keeps in host memory."""

    optimizer: float
    teacher: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.optimizer + self.teacher


def host_bytes(parameters: Parameters, layout: Layout, mode: str) -> HostMemory:
    """Return what lies in host memory instead of on the GPU."""
    return HostMemory(
        optimizer_bytes(parameters, layout) if layout.offload_optimizer else 0.0,
        teacher_bytes(parameters, layout, mode) if layout.offload_teacher else 0.0,
    )


def _visiting_state(shape: ModelShape, parameters: Parameters, layout: Layout) -> float:
    """Return an offloaded optimizer's state on the GPU at its most, and the new weights that wait there."""
    state = optimizer_bytes(parameters, layout)
    each = 8 if layout.dtype == "float32" else 12
    dense = parameters.dense / layout.shared_by
    gate = 2 * shape.hidden_size * (0 if shape.is_moe else shape.ffn_hidden_size) // layout.tensor
    largest = min(dense, max(parameters.embedding, parameters.head, gate))
    waiting = 0.0 if layout.dtype == "float32" else state / 6
    return min(state, max(VISITING_BYTES, each * largest)) + waiting


def fullest_stage(
    shape: ModelShape, layout: Layout, workload: Workload, assumptions: Assumptions
) -> tuple[int, Memory]:
    """Return the pipeline stage that needs most, and its memory."""
    # Stages between the second and the last hold less than the second: fewer micro-batches in flight.
    stages = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    found = [(stage, stage_memory(shape, layout, workload, assumptions, stage)) for stage in stages]
    return max(found, key=lambda pair: pair[1].total)


def _lessons(shape: ModelShape, layout: Layout, workload: Workload, vocab_multiple: int) -> float:
    """A copy of the teacher's head, and the hidden states of all distilled response tokens of the step."""
    if not workload.distills or workload.vocabulary == "sampled":
        return 0.0
    blend = 2 if workload.teacher == "trust_region" else 1
    head = shape.padded_vocab_size(layout.tensor, vocab_multiple) // layout.tensor
    per_rank = workload.sequences * workload.distilled_share / layout.data / layout.context
    rows = head + per_rank * workload.response_tokens
    return rows * shape.hidden_size * layout.element_bytes * blend


def _loss(shape: ModelShape, layout: Layout, workload: Workload, vocab_multiple: int, device: str) -> float:
    responses = int(workload.micro_batch_tokens / layout.context * workload.response_share)
    compared = workload.distills and workload.vocabulary != "sampled"
    taught = int(responses * workload.distilled_share) if compared else 0
    columns = shape.padded_vocab_size(layout.tensor, vocab_multiple) // layout.tensor
    dtype = "float32" if layout.dtype == "float32" else "bfloat16"
    top_k = compared and workload.vocabulary == "topk"
    selected = responses * shape.hidden_size * layout.element_bytes
    # Rows that predict a response, those of them that are routed, and the teacher's rows side by side.
    rows = 2 * selected + (taught * shape.hidden_size * layout.element_bytes if compared else 0)
    return _fused(responses, taught, shape.hidden_size, columns, dtype, device, top_k) + rows


@lru_cache(maxsize=4096)
def _fused(tokens: int, taught: int, hidden: int, columns: int, dtype: str, device: str, top_k: bool) -> int:
    # Imported here: it takes torch along, which nothing else in a plan needs.
    import torch

    from megatron_srpo.ops.fused_memory import fused_linear_bytes

    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    # The head's gradient goes into DDP's buffer, which is counted among the gradients.
    sizes = (tokens, taught, hidden, columns)
    return fused_linear_bytes(*sizes, kind, device, top_k=top_k, accumulated=True)


def _buffers(assumptions: Assumptions, workload: Workload) -> float:
    sync = 2 * SYNC_BUCKET_BYTES if workload.rollouts else 0
    return assumptions.context_bytes + assumptions.collective_bytes + sync


def in_gib(value: float) -> float:
    """Return bytes in GiB."""
    return value / (1 << 30)
