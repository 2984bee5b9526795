"""What travels between GPUs, by collective: bytes that one GPU sends, and seconds."""

from dataclasses import dataclass

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import Gpu
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.parameters import Parameters
from megatron_srpo.planner.shape import ModelShape


@dataclass(frozen=True)
class Traffic:
    """One kind of message.

    Attributes:
        name: which group talks, and what about.
        collective: all-reduce, all-to-all and so on.
        link: NVLink or network.
        sent: bytes that a GPU sends.
        seconds: as if nothing else happened meanwhile.
    """

    name: str
    collective: str
    link: str
    sent: float
    seconds: float

    def times(self, count: float) -> "Traffic":
        """Return so many of them together."""
        return Traffic(self.name, self.collective, self.link, self.sent * count, self.seconds * count)


@dataclass(frozen=True)
class Links:
    """Speeds of one GPU's links under the assumptions."""

    gpu: Gpu
    assumptions: Assumptions

    def transfer(
        self,
        name: str,
        collective: str,
        sent: float,
        span: int,
        messages: int = 1,
        far: float = 1.0,
        nvlink_share: float | None = None,
    ) -> Traffic:
        """Time ``sent`` bytes in a group whose ranks lie within ``span`` consecutive GPUs.

        Args:
            far: share of the bytes that leaves the node where the group does.
            nvlink_share: of the link that can be achieved; by default what other collectives achieve.
        """
        near = span <= self.gpu.node_gpus
        nvlink = self.gpu.nvlink * (nvlink_share or self.assumptions.nvlink)
        speed = nvlink if near else self.gpu.network * self.assumptions.network
        # Inside and outside the node at once: the slower of both counts.
        seconds = sent / speed if near else max(sent * far / speed, sent * (1 - far) / nvlink)
        latency = messages * self.assumptions.collective_latency_s if sent else 0.0
        return Traffic(name, collective, "NVLink" if near else "network", sent, seconds + latency)


def tensor_traffic(shape: ModelShape, layout: Layout, tokens: float, links: Links) -> Traffic:
    """One layer's forward: two all-reduces of the hidden states (with SP, as gather and scatter halves).

    Args:
        tokens: of the micro-batch on this rank.
    """
    size = layout.tensor
    # The all-to-all of experts stands for the second one.
    reductions = 1 if shape.is_moe else 2
    sent = reductions * 2 * (size - 1) / size * tokens * shape.hidden_size * 2
    return links.transfer("TP hidden states", "all-reduce", sent, size, 2 * reductions)


def expert_traffic(shape: ModelShape, layout: Layout, tokens: float, links: Links) -> Traffic:
    """One layer's forward: tokens to their experts and back, dropless.

    Args:
        tokens: as for :func:`tensor_traffic`.
    """
    size = layout.expert if shape.is_moe else 1
    own = tokens / layout.tensor
    sent = 2 * own * shape.experts_per_token * shape.hidden_size * 2 * (size - 1) / size
    # A token that several experts of one node want still travels once for each of them.
    far = max(0.0, (size - links.gpu.node_gpus) / max(1, size - 1))
    share = links.assumptions.all_to_all
    return links.transfer("EP tokens", "all-to-all", sent, size, 2, far, share)


def context_traffic(shape: ModelShape, layout: Layout, tokens: float, links: Links) -> Traffic:
    """One layer's forward: keys and values of the other ranks' tokens, in a ring."""
    size = layout.context
    sent = (size - 1) * tokens * 2 * shape.kv_size / layout.tensor * 2
    return links.transfer("CP keys and values", "ring", sent, layout.tensor * size, size - 1)


def pipeline_traffic(shape: ModelShape, layout: Layout, tokens: float, links: Links) -> Traffic:
    """One micro-batch: hidden states to the next stage of each chunk."""
    if layout.pipeline == 1:
        return links.transfer("PP hidden states", "send", 0.0, 1)
    share = 1 / layout.tensor if layout.sequence else 1.0
    sent = tokens * shape.hidden_size * share * layout.element_bytes * layout.virtual_pipeline
    span = layout.gpus // layout.pipeline + 1
    return links.transfer("PP hidden states", "send", sent, span, layout.virtual_pipeline)


def gradient_traffic(parameters: Parameters, layout: Layout, links: Links) -> list[Traffic]:
    """One optimizer step: gradients in fp32, and with the distributed optimizer the new weights."""
    found = []
    span = layout.gpus // layout.pipeline
    for name, share in _received(parameters, layout):
        if layout.distributed_optimizer:
            found.append(links.transfer(f"{name} gradients", "reduce-scatter", 4 * share, span))
            found.append(links.transfer(f"{name} weights", "all-gather", layout.element_bytes * share, span))
        else:
            found.append(links.transfer(f"{name} gradients", "all-reduce", 8 * share, span))
    return found


def average_traffic(parameters: Parameters, layout: Layout, links: Links) -> list[Traffic]:
    """One update of the teacher's average: the rounded weights, of which each rank has made a part."""
    span = layout.gpus // layout.pipeline
    return [
        links.transfer(f"{name} teacher", "all-gather", layout.element_bytes * share, span)
        for name, share in _received(parameters, layout)
    ]


def _received(parameters: Parameters, layout: Layout) -> list[tuple[str, float]]:
    """Name the groups of ranks with the same parameters, and what of these a rank gets from others."""
    groups = (
        ("DP", layout.copies, parameters.dense),
        ("expert DP", layout.expert_copies, parameters.experts),
    )
    return [(name, (size - 1) / size * count) for name, size, count in groups if size > 1 and count]
