"""Seconds of the passes over packed micro-batches: scoring, the teacher's pass, the update.

A layer's time is the sum of its matrix products, its attention, the streaming of its activations and its
collectives, but at least what launching it takes. A pipeline of p stages over m micro-batches takes
m + (p - 1) / v times its slowest stage.
"""

from dataclasses import dataclass, replace

from megatron_srpo.planner.activations import layer_bytes
from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.communication import (
    Links,
    Traffic,
    average_traffic,
    context_traffic,
    expert_traffic,
    gradient_traffic,
    pipeline_traffic,
    tensor_traffic,
)
from megatron_srpo.planner.hardware import Gpu
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.memory import optimizer_bytes
from megatron_srpo.planner.parameters import Parameters, rank_parameters
from megatron_srpo.planner.shape import ModelShape
from megatron_srpo.planner.workload import Workload


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass over a step's tokens, and what it sent (per GPU)."""

    seconds: float
    traffic: tuple[Traffic, ...]


@dataclass(frozen=True)
class _Layer:
    """A layer's forward of one micro-batch: seconds of computing, least seconds, traffic."""

    compute: float
    floor: float
    traffic: tuple[Traffic, ...]

    @property
    def sending(self) -> float:
        return sum(one.seconds for one in self.traffic)

    @property
    def forward(self) -> float:
        return max(self.compute + self.sending, self.floor)

    def both_ways(self, again: bool) -> float:
        """Forward and backward; ``again``: with a second forward before backward."""
        backward = max(2 * self.compute + self.sending, self.floor)
        return (2 if again else 1) * self.forward + backward


@dataclass(frozen=True)
class Trainer:
    """One training job, to be asked how long each pass takes."""

    shape: ModelShape
    layout: Layout
    workload: Workload
    gpu: Gpu
    assumptions: Assumptions

    @property
    def links(self) -> Links:
        """The GPU's links."""
        return Links(self.gpu, self.assumptions)

    def scoring(self) -> Pass:
        """Old log-probs, and the initial policy's where a KL penalty is on: forward over all rollouts."""
        passes = int(self.workload.scored) + int(self.workload.reference)
        if not passes:
            return Pass(0.0, ())
        once = self._forward(self.workload.sequences, self.workload.sequence_tokens)
        return Pass(passes * once.seconds, tuple(one.times(passes) for one in once.traffic))

    def teaching(self) -> Pass:
        """The teacher's forward over the routed rollouts, with their longer prompts."""
        if not self.workload.distills:
            return Pass(0.0, ())
        blend = 2 if self.workload.teacher == "trust_region" else 1
        routed = self.workload.sequences * self.workload.distilled_share * blend
        each = self.workload.teacher_prompt_tokens + self.workload.response_tokens
        done = self._forward(routed, each)
        visit = self._from_host(self.layout.element_bytes * self._largest_stage().total)
        return replace(done, seconds=done.seconds + visit) if self._teacher_on_host else done

    def update(self) -> Pass:
        """Forward and backward over all rollouts and the gradients' reduction, all optimizer steps."""
        steps, layout = self.workload.optimizer_steps, self.layout
        per_replica = self.workload.sequences / steps / layout.data
        count = self._micro_batches(per_replica, self.workload.sequence_tokens)
        layer = self._layer(per_replica * self.workload.sequence_tokens / count)
        again = layout.recompute == "full"
        compared = self.workload.distilled_share if self.workload.distills else 0.0
        products = 3.0 + (compared if self.workload.vocabulary != "sampled" else 0.0)
        head = self._head(per_replica * self.workload.response_tokens / count, products)
        seconds, sent = self._pipeline(count, layer.both_ways(again), layer.traffic, 3 if again else 2, head)
        reduction = self._reduction()
        hidden = min(
            self.assumptions.gradient_overlap * sum(one.seconds for one in reduction), seconds * 2 / 3
        )
        seconds += sum(one.seconds for one in reduction) - hidden
        replicas = layout.data.bit_length() - 1
        seconds *= 1.0 + self.assumptions.straggler * replicas
        return Pass(steps * seconds, tuple(one.times(steps) for one in (*sent, *reduction)))

    def optimizer(self) -> Pass:
        """Adam and the teacher's average: both stream every parameter of which this rank has the state."""
        parameters, layout = self._largest_stage(), self.layout
        own = parameters.dense / layout.shared_by + parameters.experts / layout.experts_shared_by
        # Read gradient, weight and two moments, write weight and moments in fp32, and the bf16 weight.
        seconds = self._streamed(30 * own)
        if layout.offload_optimizer:
            seconds += self._from_host(2 * optimizer_bytes(parameters, layout))
        average = self._average(parameters)
        return replace(average, seconds=seconds * self.workload.optimizer_steps + average.seconds)

    def _average(self, parameters: Parameters) -> Pass:
        layout = self.layout
        if self.workload.teacher != "ema":
            return Pass(0.0, ())
        if layout.dtype == "float32":
            return Pass(self._streamed(12 * parameters.total), ())
        own = parameters.dense / layout.copies + parameters.experts / layout.expert_copies
        traffic = average_traffic(parameters, layout, self.links)
        # Read the policy's part, read and write the average's; write, read and copy what is put together.
        seconds = self._streamed(10 * own + 6 * parameters.total) + sum(one.seconds for one in traffic)
        if self._teacher_on_host:
            seconds += self._from_host(8 * own + layout.element_bytes * parameters.total)
        return Pass(seconds, tuple(traffic))

    @property
    def _teacher_on_host(self) -> bool:
        return self.layout.offload_teacher and self.workload.teacher not in ("none", "live")

    def _streamed(self, size: float) -> float:
        return size / (self.gpu.bandwidth * self.assumptions.bandwidth)

    def _from_host(self, size: float) -> float:
        """Seconds of copying so many bytes from or to host memory."""
        return size / (self.gpu.host_link * self.assumptions.host_link)

    def _largest_stage(self) -> Parameters:
        ends = {0, self.layout.pipeline - 1}
        return max((rank_parameters(self.shape, self.layout, stage) for stage in ends), key=lambda p: p.total)

    def _reduction(self) -> list[Traffic]:
        return gradient_traffic(self._largest_stage(), self.layout, self.links)

    def _micro_batches(self, sequences: float, tokens_each: float) -> int:
        count = self.workload.micro_batches(sequences, tokens_each, self.assumptions.packing_fill)
        # An interleaved schedule wants whole rounds of the pipeline.
        stages = self.layout.pipeline
        return -(-count // stages) * stages if self.layout.virtual_pipeline > 1 else count

    def _forward(self, sequences: float, tokens_each: float) -> Pass:
        per_replica = sequences / self.layout.data
        count = self._micro_batches(per_replica, tokens_each)
        layer = self._layer(per_replica * tokens_each / count)
        head = self._head(per_replica * self.workload.response_tokens / count, 1.0)
        seconds, sent = self._pipeline(count, layer.forward, layer.traffic, 1, head)
        return Pass(seconds, sent)

    def _layer(self, tokens: float) -> "_Layer":
        """Time one layer's forward of ``tokens`` tokens (of the replica)."""
        own, layout, shape = tokens / self.layout.context, self.layout, self.shape
        traffic = (
            tensor_traffic(shape, layout, own, self.links),
            expert_traffic(shape, layout, own, self.links),
            context_traffic(shape, layout, own, self.links),
        )
        attended = min(self.workload.attended_tokens, tokens)
        attention = 2 * own * attended * shape.query_size / layout.tensor
        compute = self._products(own) + attention / (self.gpu.bf16_flops * self.assumptions.attention)
        # Without recomputation's savings: a kernel writes what it writes whether or not it is kept.
        kept = layer_bytes(shape, replace(layout, recompute="none"), int(tokens))
        streamed = self.assumptions.elementwise_passes / 3 * kept
        compute += streamed / (self.gpu.bandwidth * self.assumptions.bandwidth)
        floor = self.assumptions.expert_launch_s if shape.is_moe else self.assumptions.layer_launch_s
        return _Layer(compute, floor, traffic)

    def _products(self, own: float) -> float:
        """Seconds of a layer's matrix products of ``own`` tokens on one rank."""
        shape, layout, assumed = self.shape, self.layout, self.assumptions
        fp8 = layout.dtype == "fp8"
        share = assumed.matmul_fp8 if fp8 else assumed.matmul
        speed = self.gpu.flops(layout.dtype)
        attention = 2 * own * shape.attention_matrix / layout.tensor
        forward = 2 * own * shape.feed_forward_matrix / layout.tensor
        if not shape.is_moe:
            return (attention + forward) / (speed * share)
        busiest = assumed.expert_imbalance if layout.expert > 1 else 1.0
        # Experts are small: FP8 gains what it gains in dense products.
        expert_share = assumed.expert_matmul * share / assumed.matmul
        return attention / (speed * share) + forward * busiest / (speed * expert_share)

    def _head(self, responses: float, products: float) -> float:
        """Seconds of ``products`` matrix products of the head for a micro-batch's response tokens."""
        own = responses / self.layout.context
        columns = self.shape.padded_vocab_size(self.layout.tensor) / self.layout.tensor
        flops = 2 * own * columns * self.shape.hidden_size * products
        seconds = flops / (self.gpu.bf16_flops * self.assumptions.matmul)
        streamed = 4 * own * columns * self.assumptions.head_passes * products / 3
        return seconds + streamed / (self.gpu.bandwidth * self.assumptions.bandwidth)

    def _pipeline(
        self, count: int, layer: float, traffic: tuple[Traffic, ...], times: int, head: float
    ) -> tuple[float, tuple[Traffic, ...]]:
        """Seconds of ``count`` micro-batches through all stages, and everything that a GPU sent.

        Args:
            layer: seconds per layer and micro-batch; ``times`` its traffic.
        """
        layout = self.layout
        sizes = layout.stage_layers(self.shape.num_layers)
        directions = min(times, 2)
        tokens = self.workload.micro_batch_tokens / layout.context * self.assumptions.packing_fill
        message = pipeline_traffic(self.shape, layout, tokens, self.links).times(directions)
        stages = [size * layer for size in sizes]
        stages[-1] += head
        slowest = max(stages) + message.seconds
        rounds = count + (layout.pipeline - 1) / layout.virtual_pipeline
        sent = [one.times(max(sizes) * times * count) for one in traffic] + [message.times(count)]
        return rounds * slowest, tuple(one for one in sent if one.sent)
