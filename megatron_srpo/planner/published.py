"""Published step times and throughputs, and what the planner predicts for them.

Each source by version and date; only rows whose layout is stated in full and whose model is a Qwen3 or a
Llama. Left out: fully sharded data parallelism (FSDP), models of other kinds, GPUs that are not described in
``hardware.py``, 405B (its uneven stages are not stated), and rows that a later version of the same source
measured again.
"""

from dataclasses import dataclass, replace

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.memory import fullest_stage, usable_bytes
from megatron_srpo.planner.rollout_time import held_weight_bytes
from megatron_srpo.planner.shape import QWEN3, ModelShape
from megatron_srpo.planner.step import Engine, Problem, step_phases, synchronisation_seconds
from megatron_srpo.planner.workload import Workload

_LLAMA = {
    "llama3.1-8b": ModelShape("llama3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, qk_norm=False),
    "llama3-70b": ModelShape("llama3-70b", 80, 8192, 28672, 64, 8, 128, 128256, qk_norm=False),
}

SOURCES = {
    "RL 0.4": "NeMo-RL v0.4, the page named next at commit 06beed9",
    "RL 0.5": "NeMo-RL v0.5 (January 2026), docs/about/performance-summary.md, table H100 BF16, and the "
    "recipes of tag v0.5.0: https://github.com/NVIDIA-NeMo/RL",
    "RL 0.6": "NeMo-RL v0.6, as in tag v0.7.0 (July 2026), the same page and folder",
    "Bridge 25.11": "Megatron-Bridge, docs/performance-summary-archive.md, 25.11 NeMo container: "
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge",
    "Bridge 26.02": "the same page, 26.02 NeMo container",
    "Refit": "NeMo-RL (August 2026), docs/design-docs/nccl-reshard-refit.md, expected performance, H100 BF16",
}


@dataclass(frozen=True)
class Published:
    """One row of a table.

    Attributes:
        value: seconds of a step, tokens/s/GPU, or seconds of a weight synchronisation (``unit``).
        held_out: whether the row was added after the assumptions had been set.
    """

    source: str
    model: str
    what: str
    unit: str
    value: float
    predicted: float
    held_out: bool

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.value - 1.0


@dataclass(frozen=True)
class _Step:
    """A row of NeMo-RL's tables (GRPO; 2048 or 512 rollouts, reference policy scored, DGX H100)."""

    source: str
    model: str
    staleness: int
    limit: int
    response: int
    gpus: int
    engine_gpus: int
    engine_tensor: int
    layout: Layout
    seconds: float
    engine_memory: float
    held_out: bool = False


def _moe(tensor: int, context: int, pipeline: int, data: int, expert: int) -> Layout:
    return Layout(tensor, pipeline, 1, context, expert, data, sequence=tensor > 1)


def _big(tensor: int, context: int, data: int) -> Layout:
    """Qwen3-235B: eight stages, 11 layers in the first and the last, full recomputation."""
    base = _moe(tensor, context, 8, data, 16)
    return replace(base, recompute="full", first_stage_layers=11, last_stage_layers=11)


_LLAMA_PP2 = Layout(pipeline=2, data=8, recompute="full")
_LLAMA_DP = Layout(data=8, recompute="full")
_DENSE_32B = Layout(tensor=4, pipeline=4, data=2, sequence=True)

_STEPS = (
    _Step("RL 0.5", "llama3.1-8b", 0, 4096, 1019, 16, 16, 1, _LLAMA_PP2, 92.8, 0.6),
    _Step("RL 0.5", "llama3.1-8b", 1, 4096, 1123, 16, 8, 1, _LLAMA_DP, 64.8, 0.8),
    _Step("RL 0.5", "qwen3-32b", 0, 4096, 3251, 32, 32, 4, _DENSE_32B, 376, 0.6),
    _Step("RL 0.5", "qwen3-32b", 1, 4096, 3252, 64, 32, 4, _DENSE_32B, 200, 0.8),
    _Step("RL 0.6", "qwen3-30b-a3b", 0, 4096, 3203, 32, 32, 2, _moe(1, 1, 1, 32, 8), 192, 0.6),
    _Step("RL 0.6", "qwen3-30b-a3b", 1, 4096, 3201, 32, 16, 2, _moe(1, 1, 2, 8, 8), 152, 0.8),
    _Step("RL 0.6", "qwen3-30b-a3b", 8, 4096, 3206, 192, 64, 2, _moe(1, 1, 1, 128, 8), 34.5, 0.8),
    _Step("RL 0.6", "qwen3-235b-a22b", 0, 8192, 5698, 128, 128, 16, _big(2, 2, 4), 395, 0.6),
    _Step("RL 0.6", "qwen3-235b-a22b", 0, 8192, 5713, 256, 256, 16, _big(2, 2, 8), 312, 0.6),
    _Step("RL 0.6", "qwen3-235b-a22b", 1, 8192, 5721, 256, 128, 8, _big(4, 1, 4), 231, 0.88),
    _Step("RL 0.4", "qwen3-30b-a3b", 0, 4096, 3154, 32, 32, 4, _moe(2, 1, 1, 16, 8), 225, 0.6, True),
)


@dataclass(frozen=True)
class _Throughput:
    """A row of Megatron-Bridge's pre-training tables: FP8, every token in the loss."""

    source: str
    model: str
    gpu: str
    batch: int
    micro: int
    length: int
    layout: Layout
    tokens_per_second_per_gpu: float
    held_out: bool = False


def _fp8(tensor: int, pipeline: int, virtual: int, data: int, expert: int = 1) -> Layout:
    return Layout(tensor, pipeline, virtual, 1, expert, data, sequence=tensor > 1, dtype="fp8")


def _ends(layout: Layout) -> Layout:
    return replace(layout, first_stage_layers=11, last_stage_layers=11)


_THROUGHPUTS = (
    _Throughput("Bridge 26.02", "llama3-70b", "h100", 256, 1, 8192, _fp8(4, 8, 5, 2), 1621),
    _Throughput("Bridge 25.11", "llama3.1-8b", "b200", 128, 2, 8192, _fp8(1, 1, 1, 8), 30624),
    _Throughput("Bridge 26.02", "qwen3-30b-a3b", "h100", 1024, 1, 4096, _fp8(1, 2, 12, 8, 8), 5113),
    _Throughput("Bridge 25.11", "qwen3-30b-a3b", "h100", 512, 2, 4096, _fp8(1, 2, 24, 8, 8), 5275),
    _Throughput("Bridge 26.02", "qwen3-30b-a3b", "b200", 512, 1, 4096, _fp8(1, 1, 1, 8, 8), 9691),
    _Throughput("Bridge 26.02", "qwen3-235b-a22b", "h100", 8192, 1, 4096, _ends(_fp8(2, 8, 4, 16, 32)), 1633),
    _Throughput("Bridge 26.02", "qwen3-235b-a22b", "b200", 8192, 1, 4096, _ends(_fp8(1, 8, 1, 32, 8)), 3805),
    _Throughput(
        "Bridge 25.11", "qwen3-235b-a22b", "b200", 1024, 1, 4096, _ends(_fp8(1, 8, 2, 8, 8)), 3269, True
    ),
)

# Model, tensor parallelism of the servers, middle of the published range in seconds.
_REFITS = (("qwen3-4b", 8, 0.275), ("qwen3-30b-a3b", 8, 0.87))


def comparisons(assumptions: Assumptions | None = None) -> list[Published]:
    """Predict every row."""
    assumed = assumptions or Assumptions()
    rows = [_predict_step(step, assumed) for step in _STEPS]
    rows += [_predict_throughput(row, assumed) for row in _THROUGHPUTS]
    return rows + [_predict_refit(*row, assumed) for row in _REFITS]


def _shape(name: str) -> ModelShape:
    return QWEN3[name] if name in QWEN3 else _LLAMA[name]


def trainer_memory() -> list[tuple[str, float]]:
    """Return what the GRPO rows' trainers need by the planner, in bytes: they ran, so it must fit.

    The initial policy is left out: NeMo-RL keeps it in host memory.
    """
    found = []
    for row in _STEPS:
        work = replace(_step_workload(row), reference=False)
        _, memory = fullest_stage(_shape(row.model), row.layout, work, Assumptions())
        found.append((f"{row.model}, {row.layout}", memory.total))
    return found


def _step_workload(row: _Step) -> Workload:
    # Mean lengths are of responses: with prompts of this size they give the published tokens/s.
    prompt = 128 if row.model.startswith("llama") else 106
    large = row.model == "qwen3-235b-a22b"
    return Workload(
        prompts=16 if large else 64,
        samples=32,
        prompt_tokens=prompt,
        response_tokens=row.response,
        max_response_tokens=row.limit - prompt,
        micro_batch_tokens=row.limit,
        optimizer_steps=1 if large else 4,
        distilled_share=0.0,
        teacher="none",
        reference=True,
        staleness=row.staleness,
    )


def _predict_step(row: _Step, assumed: Assumptions) -> Published:
    gpu = GPUS["h100"]
    problem = Problem(_shape(row.model), _step_workload(row), gpu, assumed)
    colocated = row.staleness == 0
    cache = gpu.memory_bytes * row.engine_memory - held_weight_bytes(problem.shape, row.engine_tensor)
    engine = Engine(row.engine_tensor, row.engine_gpus, colocated)
    phases, _ = step_phases(problem, row.layout, engine, cache)
    mode = "on-policy" if colocated else f"{row.staleness}-step off"
    what = f"GRPO {mode}, {row.gpus} H100, {row.layout}, servers TP{row.engine_tensor}"
    seconds = phases.step(row.staleness)
    return Published(row.source, row.model, what, "s/step", row.seconds, seconds, row.held_out)


def _predict_throughput(row: _Throughput, assumed: Assumptions) -> Published:
    work = Workload(
        prompts=row.batch,
        samples=1,
        prompt_tokens=0,
        response_tokens=row.length,
        max_response_tokens=row.length,
        micro_batch_tokens=row.micro * row.length,
        distilled_share=0.0,
        teacher="none",
        scored=False,
        rollouts=False,
    )
    gpu = GPUS[row.gpu]
    problem = Problem(_shape(row.model), work, gpu, replace(assumed, packing_fill=1.0))
    phases, _ = step_phases(problem, row.layout, Engine(1, row.layout.gpus), usable_bytes(gpu, assumed))
    rate = work.tokens / phases.step(0) / row.layout.gpus
    what = f"pre-training FP8, {row.layout.gpus} {row.gpu.upper()}, {row.layout}, {row.micro} x {row.length}"
    value = row.tokens_per_second_per_gpu
    return Published(row.source, row.model, what, "tokens/s/GPU", value, rate, row.held_out)


def _predict_refit(model: str, tensor: int, published: float, assumed: Assumptions) -> Published:
    problem = Problem(_shape(model), Workload(), GPUS["h100"], assumed)
    seconds = synchronisation_seconds(problem, Engine(tensor, 16, colocated=False))
    what = f"weights to servers TP{tensor}, H100"
    return Published("Refit", model, what, "s", published, seconds, held_out=False)
