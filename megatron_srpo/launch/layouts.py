"""How the recipes spread each Qwen3 over GPUs of 80 GB, as data.

Chosen with the planner (docs/plan.md) so that, with the papers' longest prompts and responses and every
response distilled, no GPU needs more than 72 of its 80 GB; among such layouts, one with the fewest means that
cost time. None has run on a GPU yet. ``tests/launch/test_layouts.py`` computes every row anew.
"""

from dataclasses import dataclass

from megatron_srpo.errors import ConfigError


@dataclass(frozen=True)
class SizeLayout:
    """A layout of one size, from a number of GPUs on. More GPUs become data-parallel replicas.

    Attributes:
        gpus: fewest GPUs of the whole job.
        offload: Adam's state and the teacher lie in host memory.
        recompute: ``training.recompute``.
        server: GPUs of one SGLang server.
    """

    gpus: int
    tensor: int = 1
    pipeline: int = 1
    offload: bool = False
    recompute: str = "none"
    server: int = 1

    @property
    def replica(self) -> int:
        """GPUs of one copy of the model."""
        return self.tensor * self.pipeline


#: By size, the fewest GPUs first.
LAYOUTS: dict[str, tuple[SizeLayout, ...]] = {
    "0.6b": (SizeLayout(1),),
    "1.7b": (SizeLayout(1, offload=True), SizeLayout(2, tensor=2), SizeLayout(4)),
    "4b": (
        SizeLayout(1, offload=True, recompute="full"),
        SizeLayout(2, tensor=2, offload=True),
        SizeLayout(4, tensor=4),
    ),
    "8b": (
        SizeLayout(2, tensor=2, offload=True, recompute="full", server=2),
        SizeLayout(4, tensor=4, offload=True, server=2),
        SizeLayout(8, tensor=4, server=2),
    ),
    "14b": (
        SizeLayout(4, tensor=4, offload=True, recompute="full", server=4),
        SizeLayout(8, tensor=8, offload=True, server=4),
        SizeLayout(16, tensor=8, server=4),
    ),
    "32b": (
        SizeLayout(8, tensor=8, offload=True, recompute="full", server=8),
        SizeLayout(16, tensor=8, pipeline=2, offload=True, server=8),
        SizeLayout(32, tensor=8, pipeline=4, server=4),
    ),
}

#: Share of the memory free at their start that colocated servers fill with weights and cache. Adam's moments
#: come into being after that, and CUDA graphs and activations of the servers need room as well.
COLOCATED_MEM_FRACTION = 0.6


def choose_layout(size: str, nodes: int, gpus_per_node: int) -> SizeLayout:
    """Return the layout for a job; tensor parallelism and servers stay within a node.

    Raises:
        ConfigError: none fits; says what would.
    """
    gpus = nodes * gpus_per_node
    possible = [
        layout
        for layout in LAYOUTS[size]
        if layout.gpus <= gpus
        and gpus % layout.replica == 0
        and gpus_per_node % layout.tensor == 0
        and gpus_per_node % layout.server == 0
    ]
    if not possible:
        known = ", ".join(
            f"{layout.gpus} GPUs or more in multiples of {layout.replica}, those of a node in multiples of "
            f"{max(layout.tensor, layout.server)}"
            for layout in LAYOUTS[size]
        )
        raise ConfigError(
            f"no layout of Qwen3 {size} for {nodes} x {gpus_per_node} GPUs; there are layouts for: {known}"
        )
    return possible[-1]
