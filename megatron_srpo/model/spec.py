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
)
from megatron_srpo.model.norm import RMSNorm


def transformer_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """Return the spec of this rank's layers and of the final norm."""
    layers = [_local_layer()] * get_num_layers_to_build(config)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def _local_layer() -> ModuleSpec:
    """Return a Qwen3 layer of Megatron-Core's own linear modules, with our norm and attention."""
    layer = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    attention = layer.submodules.self_attention
    attention.submodules = replace(
        attention.submodules, q_layernorm=RMSNorm, k_layernorm=RMSNorm, core_attention=CausalAttention
    )
    layer.submodules = replace(layer.submodules, input_layernorm=RMSNorm, pre_mlp_layernorm=RMSNorm)
    return layer
