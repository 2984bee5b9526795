"""Bytes that a layer keeps for its backward pass, per micro-batch and rank.

Counted from what the modules save. Elements per token, with H the hidden size, Q the width of the queries, K
that of the keys (values are as wide), F the feed-forward size, k experts per token of size E:

part                     transformer_engine                  local (this project's spec on a CPU)
norms, residual stream   4 H                                 4 H
attention                (Q + 2K) + (Q + K) + Q              (Q + 2K) + Q + (Q + 2K) + 2 Q
feed-forward             3 F                                 4 F
experts                  k (2 H + 3 E)                       k (2 H + 4 E)

Everything but the full-width inputs of tensor-parallel linears is split by tensor parallelism; those are
split as well with sequence parallelism.
"""

from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.shape import ModelShape


def layer_bytes(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Return what one layer keeps of ``tokens`` tokens (of the whole micro-batch) without recomputation."""
    own = tokens / layout.context
    return own * layout.element_bytes * (_stream(shape, layout) + _inner(shape, layout)) + own * _statistics(
        shape, layout
    )


def kept_layer_bytes(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Return what one layer keeps under the layout's recomputation."""
    own = tokens / layout.context
    if layout.recompute == "full":
        return own * layout.element_bytes * shape.hidden_size * _stream_share(layout)
    spared = 0.0
    if layout.recompute == "selective" and layout.kernels == "local":
        spared = own * layout.element_bytes * (shape.qkv_size + shape.query_size) / layout.tensor
    return layer_bytes(shape, layout, tokens) - spared


def boundary_bytes(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Return the size of the hidden states of a micro-batch on one rank."""
    return tokens / layout.context * layout.element_bytes * shape.hidden_size * _stream_share(layout)


def stage_bytes(shape: ModelShape, layout: Layout, stage: int, tokens: int, micro_batches: int) -> float:
    """Return the activations that a pipeline stage keeps at its fullest.

    Under 1F1B, stage i holds as many micro-batches as there are stages from it on. With v chunks per stage
    the first ones hold (p - 1) / (p v) more (arXiv 2104.04473, section 2.2; 2205.05198, section 4.2.3).
    """
    layers = layout.stage_layers(shape.num_layers)[stage]
    waiting = float(min(layout.pipeline - stage, micro_batches))
    if layout.virtual_pipeline > 1:
        extra = (layout.pipeline - 1) / (layout.pipeline * layout.virtual_pipeline)
        waiting = min(waiting + extra * layout.pipeline, float(micro_batches))
    per_micro_batch = layers * kept_layer_bytes(shape, layout, tokens)
    if layout.pipeline > 1:
        # What a stage sent on is not freed early (model/build.py).
        per_micro_batch += boundary_bytes(shape, layout, tokens)
    if stage == layout.pipeline - 1:
        per_micro_batch += 2 * boundary_bytes(shape, layout, tokens)  # the final norm's input and output
    return waiting * per_micro_batch


def working_bytes(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Return what a layer's backward pass holds for a moment: gradients, and what it computed again.

    The gradients that are alive at once are about half as large as what the layer keeps.
    """
    whole = layer_bytes(shape, layout, tokens)
    return (1.5 if layout.recompute == "full" else 0.5) * whole


def _stream_share(layout: Layout) -> float:
    return 1.0 / layout.tensor if layout.sequence else 1.0


def _stream(shape: ModelShape, layout: Layout) -> float:
    return 4 * shape.hidden_size * _stream_share(layout)


def _inner(shape: ModelShape, layout: Layout) -> float:
    """Elements per token that tensor parallelism splits."""
    query, key = shape.query_size, shape.kv_size
    local = layout.kernels == "local"
    attention = shape.qkv_size + (query + shape.qkv_size + 2 * query if local else 2 * query + key)
    gated = 4 if local else 3
    if shape.is_moe:
        per_expert = 2 * shape.hidden_size + gated * shape.expert_ffn_size
        return (attention + shape.experts_per_token * per_expert) / layout.tensor
    return (attention + gated * shape.ffn_hidden_size) / layout.tensor


def _statistics(shape: ModelShape, layout: Layout) -> float:
    """Bytes per token in fp32: norms' reciprocal means, the attention's normaliser, router probabilities."""
    heads = 2 * shape.num_heads + shape.num_kv_heads
    return 4 * (2 + heads / layout.tensor) + 8 * shape.num_experts * _stream_share(layout)
