"""Parameters by part: of the whole model, and of one rank of a Megatron layout."""

from dataclasses import asdict, dataclass

from megatron_srpo.model.architecture import DEFAULT_VOCAB_MULTIPLE
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.shape import ModelShape


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by part. ``head`` of a tied model counts only where a stage holds a copy."""

    embedding: int
    attention: int
    feed_forward: int
    experts: int
    router: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())

    @property
    def dense(self) -> int:
        """All but experts: what every rank of a data-parallel group holds alike."""
        return self.total - self.experts

    @property
    def matrices(self) -> int:
        """Parameters in the layers' linear modules: what FP8 multiplies with."""
        return self.attention + self.feed_forward + self.experts


def model_parameters(shape: ModelShape) -> Parameters:
    """Count the whole model as its Hugging Face folder holds it, without padding of the vocabulary."""
    return _count(shape, shape.num_layers, shape.vocab_size, tensor=1, expert=1, first=True, last=True)


def active_parameters(shape: ModelShape) -> int:
    """Count what one token passes through: of the experts, those that it visits; no embedding row."""
    whole = model_parameters(shape)
    visited = whole.experts * shape.experts_per_token // max(1, shape.num_experts)
    return whole.total - whole.experts + visited - (0 if shape.tied_embeddings else whole.embedding)


def rank_parameters(
    shape: ModelShape, layout: Layout, stage: int, vocab_multiple: int = DEFAULT_VOCAB_MULTIPLE
) -> Parameters:
    """Count what one rank of pipeline stage ``stage`` holds, padding of the vocabulary included."""
    return _count(
        shape,
        layout.stage_layers(shape.num_layers)[stage],
        shape.padded_vocab_size(layout.tensor, vocab_multiple),
        layout.tensor,
        layout.expert,
        first=stage == 0,
        last=stage == layout.pipeline - 1,
    )


def _count(
    shape: ModelShape, layers: int, vocabulary: int, tensor: int, expert: int, *, first: bool, last: bool
) -> Parameters:
    hidden = shape.hidden_size
    table = vocabulary * hidden // tensor
    layer_norms = 2 * hidden + (2 * shape.head_dim if shape.qk_norm else 0)
    own_head = last and not (shape.tied_embeddings and first)
    return Parameters(
        embedding=table if first else 0,
        attention=layers * shape.attention_matrix // tensor,
        feed_forward=0 if shape.is_moe else layers * shape.feed_forward_matrix // tensor,
        experts=layers * shape.expert_matrix // expert,
        router=layers * hidden * shape.num_experts,
        norms=layers * layer_norms + (hidden if last else 0),
        head=table if own_head else 0,
    )
