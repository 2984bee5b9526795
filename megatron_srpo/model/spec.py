"""Which modules a transformer layer is made of.

``build.py`` knows a layer only through :func:`transformer_block_spec`; another set of kernels is another
function beside :func:`_local_layer`.
"""

from dataclasses import replace

from megatron_srpo.model.attention import CausalAttention
from megatron_srpo.model.megatron_core import (
    ModuleSpec,
    TENorm,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    get_num_layers_to_build,
    get_transformer_layer_offset,
)
from megatron_srpo.model.norm import RMSNorm
from megatron_srpo.model.precision import LOCAL, Layers

#: Under which name a checkpoint keeps a norm that Transformer Engine's layers have inside the product after
#: it. The norm before experts is not among them: it stands by itself in both.
_NAMES_OF_EXPERT_LAYERS = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}


def transformer_block_spec(
    config: TransformerConfig, layers: Layers = LOCAL, chunk: int | None = None
) -> TransformerBlockSubmodules:
    """Return the spec of this rank's layers and of the final norm.

    Args:
        chunk: of an interleaved stage.
    """
    first, count = get_transformer_layer_offset(config, chunk), get_num_layers_to_build(config, chunk)
    layer = _transformer_engine_layer if layers.transformer_engine else _local_layer
    return TransformerBlockSubmodules(
        layer_specs=[layer(config, first + n) for n in range(count)],
        layer_norm=TENorm if layers.transformer_engine else RMSNorm,
    )


def _experts(config: TransformerConfig, index: int) -> int | None:
    """Return the number of experts of a layer, counted over the whole model; None for a dense one."""
    pattern = config.moe_layer_freq
    return config.num_moe_experts if pattern == 1 or pattern[index] else None


def _transformer_engine_layer(config: TransformerConfig, index: int) -> ModuleSpec:
    """Return a Qwen3 layer of Transformer Engine's modules, as Megatron-Core puts it together.

    The norms are computed inside the matrix products after them, and the experts in one grouped product.
    """
    return get_gpt_layer_with_transformer_engine_spec(
        num_experts=_experts(config, index), moe_grouped_gemm=True, qk_layernorm=True
    )


def _local_layer(config: TransformerConfig, index: int) -> ModuleSpec:
    """Return a Qwen3 layer of Megatron-Core's own linear modules, with our norm and attention.

    Experts are computed one after the other: grouped products need kernels for CUDA.
    """
    experts = _experts(config, index)
    layer = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=True, normalization="RMSNorm")
    attention = layer.submodules.self_attention
    attention.submodules = replace(
        attention.submodules, q_layernorm=RMSNorm, k_layernorm=RMSNorm, core_attention=CausalAttention
    )
    layer.submodules = replace(layer.submodules, input_layernorm=RMSNorm, pre_mlp_layernorm=RMSNorm)
    if experts is not None:
        layer.submodules = replace(layer.submodules, sharded_state_dict_keys_map=_NAMES_OF_EXPERT_LAYERS)
    return layer
