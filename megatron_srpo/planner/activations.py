"""Bytes that a layer keeps for its backward pass, per micro-batch and rank.

Counted from what the modules save. Elements per token, with H the hidden size, Q the width of the queries,
K that of the keys (values are as wide), F the feed-forward size, d the head size, k experts per token of
size E:

part                     transformer_engine      local (this project's layer spec, on a CPU)
norms, residual stream   4 H                     4 H in fp32, and 2 H
norms of queries, keys   Q + 2 K                 2 (Q + K) in fp32; in fp32 training Q + K more
attention                2 Q + K                 3 Q + 2 K, and 4 d of RoPE
feed-forward             3 F                     5 F
experts                  k (2 H + 3 E)           k (2 H + 5 E)

In FP8, Transformer Engine's linears keep one byte per element of their inputs (2 H, F, k H and k E of the
above), and a copy of the attention's context. Everything but RoPE and the full-width inputs of
tensor-parallel linears is split by tensor parallelism; those inputs, and the norms', are split as well with
sequence parallelism.
"""

from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.shape import ModelShape


def layer_bytes(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Return what one layer keeps of ``tokens`` tokens (of the whole micro-batch) without recomputation."""
    return tokens / layout.context * _token_bytes(shape, layout)


def kept_layer_bytes(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Return what one layer keeps under the layout's recomputation."""
    own = tokens / layout.context
    if layout.recompute == "full":
        return own * layout.element_bytes * shape.hidden_size * _stream_share(layout)
    spared = 0.0
    if layout.recompute == "selective" and layout.kernels == "local":
        # The context; with Transformer Engine it is the next linear's input as well, and stays.
        spared = own * layout.element_bytes * shape.query_size / layout.tensor
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


def _token_bytes(shape: ModelShape, layout: Layout) -> float:
    local, element, hidden = layout.kernels == "local", layout.element_bytes, shape.hidden_size
    stream = hidden * (16 + 2 * element if local else 2 * element + 2 * _input_bytes(layout))
    whole = 4 * shape.head_dim * element if local else 0
    inner = _local_inner(shape, layout) if local else _engine_inner(shape, layout)
    heads = 4 * (2 * shape.num_heads + shape.num_kv_heads)  # the attention's normalisers and the heads' norms
    router = 8 * shape.num_experts + 4 * 2
    return (stream + router) * _stream_share(layout) + whole + (inner + heads) / layout.tensor


def _input_bytes(layout: Layout) -> int:
    """Bytes per element of what a linear module keeps of its input: FP8 keeps what it multiplied."""
    return 1 if layout.dtype == "fp8" else layout.element_bytes


def _local_inner(shape: ModelShape, layout: Layout) -> float:
    query, key = shape.query_size, shape.kv_size
    norms = 8 * (query + key)
    if layout.dtype == "float32":
        # The norms need no fp32 copy, and so keep the joint storage of queries, keys and values alive;
        # queries of several key heads are copied out of it.
        norms += 4 * (key if shape.num_kv_heads == layout.tensor else query + key)
    return norms + layout.element_bytes * (3 * query + 2 * key + _feed_forward(shape))


def _engine_inner(shape: ModelShape, layout: Layout) -> float:
    """With Transformer Engine: the gate's inputs in full, the inputs of linears as they are multiplied."""
    element, given = layout.element_bytes, _input_bytes(layout)
    attention = element * (shape.qkv_size + 2 * shape.query_size + shape.kv_size)
    if layout.dtype == "fp8":
        attention += given * shape.query_size  # beside the context, which the attention keeps itself
    if shape.is_moe:
        per_expert = (element + given) * shape.hidden_size + (2 * element + given) * shape.expert_ffn_size
        return attention + shape.experts_per_token * per_expert
    return attention + (2 * element + given) * shape.ffn_hidden_size


def _feed_forward(shape: ModelShape) -> float:
    """Elements per token of the local spec."""
    if shape.is_moe:
        return shape.experts_per_token * (2 * shape.hidden_size + 5 * shape.expert_ffn_size)
    return 5 * shape.ffn_hidden_size
