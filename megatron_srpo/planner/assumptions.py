"""What of the hardware's published numbers can be achieved, and what nothing published says.

Every number that is not arithmetic or a datasheet is here, by name, so that its effect on a plan can be shown
(``scaling.py`` varies each). They were set by hand with the published tables of ``published.py`` in view.
"""

from dataclasses import dataclass, field, fields


def _assumed(default: float, meaning: str) -> float:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """Achievable shares of peaks (0 to 1), seconds of overhead, and bytes that no tensor accounts for."""

    matmul: float = _assumed(0.55, "share of peak in the dense matrix products of training and scoring, bf16")
    matmul_fp8: float = _assumed(0.52, "the same in FP8, casts of activations included")
    expert_matmul: float = _assumed(0.28, "share of peak in grouped matrix products of experts")
    attention: float = _assumed(0.50, "share of the bf16 peak in attention kernels")
    bandwidth: float = _assumed(0.80, "share of the memory bandwidth in streaming kernels")
    elementwise_passes: float = _assumed(3.0, "times that each saved activation crosses the memory bus")
    head_passes: float = _assumed(8.0, "times that a chunk of fp32 logits crosses the memory bus in the loss")
    layer_launch_s: float = _assumed(4e-4, "least seconds of a layer's forward (kernel launches), dense")
    expert_launch_s: float = _assumed(1.2e-3, "the same with experts: routing, permutation, all-to-all")
    nvlink: float = _assumed(0.75, "share of NVLink in collectives")
    network: float = _assumed(0.80, "share of the network in collectives")
    host_link: float = _assumed(0.70, "share of PCIe in copies from and to page-locked host memory")
    all_to_all: float = _assumed(
        0.15, "share of NVLink in the dropless all-to-all of experts, waiting included"
    )
    collective_latency_s: float = _assumed(2e-5, "seconds per collective, whatever its size")
    gradient_overlap: float = _assumed(0.5, "share of the gradient reduction hidden behind backward")
    expert_imbalance: float = _assumed(1.25, "load of the busiest expert-parallel rank over the mean")
    packing_fill: float = _assumed(0.90, "how full packed micro-batches are")
    straggler: float = _assumed(0.015, "slow-down of a synchronous update per doubling of replicas")
    decode_matmul: float = _assumed(0.45, "share of the bf16 peak in decode and prefill")
    decode_bandwidth: float = _assumed(0.65, "share of the memory bandwidth in decode")
    decode_step_s: float = _assumed(5e-3, "seconds per decode step that are neither: scheduling, sampling")
    decode_sequence_s: float = _assumed(1.5e-5, "seconds per sequence and decode step on a server's host")
    decode_collective_s: float = _assumed(2e-5, "seconds of one all-reduce of a decode step inside a node")
    decode_collective_far_s: float = _assumed(6e-5, "the same between nodes")
    engine_memory: float = _assumed(0.90, "share of a GPU's memory that a server of its own may fill")
    sync_link: float = _assumed(0.30, "share of the network at which weights reach the servers")
    sync_s: float = _assumed(0.25, "seconds of a weight synchronisation, whatever its size")
    switch_s: float = _assumed(4.0, "seconds to hand colocated GPUs to the servers and back")
    step_s: float = _assumed(3.0, "seconds per step of rewards, packing and bookkeeping")
    context_bytes: float = _assumed(1.5e9, "CUDA context and libraries, per GPU")
    collective_bytes: float = _assumed(1.0e9, "buffers of NCCL, per GPU")
    fragmentation: float = _assumed(0.05, "share of a GPU's memory lost between the allocator's blocks")


#: What decides memory, not time.
MEMORY_ONLY = frozenset({"context_bytes", "collective_bytes", "fragmentation"})


def meanings() -> dict[str, str]:
    """Return what each assumption means."""
    return {one.name: one.metadata["meaning"] for one in fields(Assumptions)}
