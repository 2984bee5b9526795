"""Seconds in which the servers sample a batch: a roofline of decode steps.

A decode step of b sequences reads the weights and b key-value caches, multiplies, all-reduces twice per layer
and is scheduled. While sequences wait, a server runs as many as its cache holds; after that its batch thins
out as responses end, down to the longest one alone.
"""

from dataclasses import dataclass

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import Gpu
from megatron_srpo.planner.parameters import active_parameters, model_parameters
from megatron_srpo.planner.shape import ModelShape
from megatron_srpo.planner.workload import Workload

#: Parts into which the thinning batch is cut.
_SLICES = 24
#: SGLang and vLLM run no more at once by default; a larger batch gains little.
MOST_RUNNING = 1024


@dataclass(frozen=True)
class Servers:
    """The rollout engine.

    Attributes:
        gpus: of all servers together.
        tensor: GPUs of one server.
        cache_bytes: for keys and values, per GPU.
    """

    shape: ModelShape
    workload: Workload
    gpu: Gpu
    assumptions: Assumptions
    gpus: int
    tensor: int
    cache_bytes: float

    @property
    def count(self) -> int:
        """Servers."""
        return self.gpus // self.tensor

    @property
    def running(self) -> float:
        """Sequences that one server runs at once: as many as fit, and as it is given.

        A batch that starts together is longest together. With a staleness of k above 1 the responses of k
        batches are under way at the same time, at all lengths.
        """
        staleness = self.workload.staleness
        context = self._fullest_context() if staleness < 2 else self._mean_context()
        fitting = self.cache_bytes / (context * self.kv_bytes_per_token)
        return max(1.0, min(fitting, float(MOST_RUNNING), self.each * max(1, staleness)))

    def _mean_context(self) -> float:
        return self.workload.prompt_tokens + self.workload.response_tokens / 2

    def _fullest_context(self) -> float:
        """Tokens per sequence when a batch that started together fills the cache most."""
        work, longest = self.workload, self.workload.max_response_tokens
        lengths = [part / _SLICES * longest for part in range(1, _SLICES)]
        return max(work.still_running(length) * (work.prompt_tokens + length) for length in lengths)

    @property
    def each(self) -> float:
        """Sequences of a batch that one server samples."""
        return self.workload.sequences / self.count

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values per token on one GPU (bf16; heads are repeated where they are too few)."""
        heads = max(1.0, self.shape.num_kv_heads / self.tensor)
        return 2 * 2 * heads * self.shape.head_dim * self.shape.num_layers

    def seconds(self) -> float:
        """Seconds until the last response of a batch has ended."""
        return self._prefill() + self._full_phase(self.each - self.running) + self._tail()

    def steady_seconds(self) -> float:
        """Seconds per batch where the next batches' prompts fill the places of responses that ended."""
        return self._prefill() + self._full_phase(self.each)

    def step_seconds(self, batch: float, context: float) -> float:
        """Seconds of one decode step of ``batch`` sequences with ``context`` tokens each."""
        assumed = self.assumptions
        read = weight_bytes(self.shape, batch) / self.tensor + batch * context * self.kv_bytes_per_token
        memory = read / (self.gpu.bandwidth * assumed.decode_bandwidth)
        flops = 2 * batch * active_parameters(self.shape) / self.tensor
        compute = flops / (self.gpu.bf16_flops * assumed.decode_matmul)
        overhead = assumed.decode_step_s + batch * assumed.decode_sequence_s
        return max(memory, compute) + self._collectives(batch) + overhead

    def _collectives(self, batch: float) -> float:
        if self.tensor == 1:
            return 0.0
        near = self.tensor <= self.gpu.node_gpus
        each = self.assumptions.decode_collective_s if near else self.assumptions.decode_collective_far_s
        speed = (
            self.gpu.nvlink * self.assumptions.nvlink if near else self.gpu.network * self.assumptions.network
        )
        size = 2 * (self.tensor - 1) / self.tensor * batch * self.shape.hidden_size * 2
        return 2 * self.shape.num_layers * (each + size / speed)

    def _prefill(self) -> float:
        """Each prompt once: its samples share the cache."""
        prompts = self.workload.prompts / self.count
        flops = 2 * prompts * self.workload.prompt_tokens * active_parameters(self.shape) / self.tensor
        return flops / (self.gpu.bf16_flops * self.assumptions.decode_matmul)

    def _full_phase(self, sequences: float) -> float:
        """Seconds to sample ``sequences`` with every place taken."""
        if sequences <= 0:
            return 0.0
        context = self._mean_context()
        steps = sequences * self.workload.response_tokens / self.running
        return steps * self.step_seconds(self.running, context)

    def _tail(self) -> float:
        """Seconds in which the last full batch thins out."""
        longest, total = self.workload.max_response_tokens, 0.0
        for part in range(_SLICES):
            length = (part + 0.5) / _SLICES * longest
            batch = max(1.0, self.running * self.workload.still_running(length))
            total += self.step_seconds(batch, self.workload.prompt_tokens + length)
        return total * longest / _SLICES


def weight_bytes(shape: ModelShape, batch: float) -> float:
    """Return the bf16 weights that a decode step of ``batch`` tokens reads: of experts, the wanted ones."""
    whole = model_parameters(shape)
    wanted = 1.0
    if shape.is_moe:
        wanted = 1.0 - (1.0 - shape.experts_per_token / shape.num_experts) ** batch
    table = 0 if shape.tied_embeddings else whole.embedding
    return 2 * (whole.dense - table + wanted * whole.experts)


def held_weight_bytes(shape: ModelShape, tensor: int) -> float:
    """Return the bf16 weights that one GPU of a server holds."""
    return 2 * model_parameters(shape).total / tensor
