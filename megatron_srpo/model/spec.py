"""Which modules a transformer layer is made of.

``build.py`` knows a layer only through :func:`transformer_block_spec`; another set of kernels is another
function beside :func:`_local_layer`.
"""

from dataclasses import replace

from megatron_srpo.model.attention import CausalAttention
from megatron_srpo.model.megatron_core import (
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_gpt_layer_local_spec,
    get_num_layers_to_build,
    get_transformer_layer_offset,
)
from megatron_srpo.model.norm import RMSNorm


def transformer_block_spec(config: TransformerConfig, chunk: int | None = None) -> TransformerBlockSubmodules:
    """Return the spec of this rank's layers and of the final norm.

    Args:
        chunk: of an interleaved stage.
    """
    first, count = get_transformer_layer_offset(config, chunk), get_num_layers_to_build(config, chunk)
    return TransformerBlockSubmodules(
        layer_specs=[_local_layer(config, first + n) for n in range(count)],
        layer_norm=RMSNorm,
    )


def _local_layer(config: TransformerConfig, index: int) -> ModuleSpec:
    """Return a Qwen3 layer of Megatron-Core's own linear modules, with our norm and attention.

    Experts are computed one after the other: grouped products need kernels for CUDA.
    """
    pattern = config.moe_layer_freq
    experts = config.num_moe_experts if pattern == 1 or pattern[index] else None
    layer = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=True, normalization="RMSNorm")
    attention = layer.submodules.self_attention
    attention.submodules = replace(
        attention.submodules, q_layernorm=RMSNorm, k_layernorm=RMSNorm, core_attention=CausalAttention
    )
    layer.submodules = replace(layer.submodules, input_layernorm=RMSNorm, pre_mlp_layernorm=RMSNorm)
    return layer
