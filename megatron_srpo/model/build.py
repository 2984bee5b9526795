"""A Qwen3 policy as this rank's stage and shard of a Megatron-Core ``GPTModel``."""

import warnings
from importlib.util import find_spec
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from megatron_srpo import platform
from megatron_srpo.model.architecture import DEFAULT_VOCAB_MULTIPLE, Qwen3Architecture, check_layout
from megatron_srpo.model.chunks import join_chunks
from megatron_srpo.model.head import PolicyHead
from megatron_srpo.model.megatron_core import GPTModel, TransformerConfig
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.model.precision import LOCAL, Layers
from megatron_srpo.model.spec import transformer_block_spec
from megatron_srpo.model.stages import PipelineStages


class LayoutSizes(Protocol):
    """What Megatron-Core's config needs to know of a layout; process groups have it, and need not exist."""

    @property
    def tp_size(self) -> int: ...
    @property
    def cp_size(self) -> int: ...
    @property
    def ep_size(self) -> int: ...
    @property
    def sequence(self) -> bool: ...
    @property
    def stages(self) -> PipelineStages: ...


def transformer_config(
    arch: Qwen3Architecture,
    groups: LayoutSizes,
    dtype: torch.dtype,
    recompute: str = "none",
    layers: Layers = LOCAL,
) -> TransformerConfig:
    """Return Megatron-Core's config for this architecture and layout.

    Args:
        dtype: of weights, activations and what travels between pipeline stages.
        recompute: "none", "selective" (core attention) or "full" (every layer) in the backward pass.
        layers: what the layers are made of.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="full scope is deprecated")  # its own default
        return TransformerConfig(
            num_layers=arch.num_layers,
            hidden_size=arch.hidden_size,
            ffn_hidden_size=arch.ffn_hidden_size,
            num_attention_heads=arch.num_heads,
            num_query_groups=arch.num_kv_heads,
            kv_channels=arch.head_dim,
            qk_layernorm=True,
            normalization="RMSNorm",
            layernorm_epsilon=arch.rms_norm_eps,
            gated_linear_unit=True,
            activation_func=F.silu,
            add_bias_linear=False,
            add_qkv_bias=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            tensor_model_parallel_size=groups.tp_size,
            pipeline_model_parallel_size=groups.stages.size,
            **stage_options(groups.stages),
            context_parallel_size=groups.cp_size,
            sequence_parallel=groups.sequence,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            autocast_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            # Weights always come from a checkpoint. Zeros instead of random numbers, and made shard by shard:
            # "CPU initialization" would draw each full matrix on every rank.
            use_cpu_initialization=False,
            init_method=torch.nn.init.zeros_,
            output_layer_init_method=torch.nn.init.zeros_,
            embedding_init_method=torch.nn.init.zeros_,
            # The loss is a sum over tokens, divided once by the count over the whole optimizer step.
            calculate_per_token_loss=True,
            recompute_granularity=None if recompute == "none" else recompute,
            recompute_method="uniform" if recompute == "full" else None,
            recompute_num_layers=1 if recompute == "full" else None,
            # Packed rows differ in length, so stages tell each other shapes.
            variable_seq_lengths=groups.stages.size > 1,
            # Freeing a sent output early corrupts it when the transport is still reading (seen with gloo).
            deallocate_pipeline_outputs=False,
            # There is no dropout, no bias, and the loss is ours: nothing for these to fuse.
            masked_softmax_fusion=False,
            bias_dropout_fusion=False,
            persist_layer_norm=False,
            cross_entropy_loss_fusion=False,
            **kernel_options(layers),
            **_expert_options(arch, groups, layers),
        )


def stage_options(stages: PipelineStages) -> dict[str, Any]:
    """Return Megatron-Core's options of uneven and of interleaved stages."""
    # Of two stages, one size says it all; with both, Megatron-Core divides by the number of the others.
    implied = stages.size == 2 and stages.first is not None
    ends = {
        "num_layers_in_first_pipeline_stage": stages.first,
        "num_layers_in_last_pipeline_stage": None if implied else stages.last,
    }
    if not stages.interleaved:
        return ends
    return {
        **ends,
        "virtual_pipeline_model_parallel_size": stages.chunks,
        # Stages tell each other the lengths of rows (variable_seq_lengths). With two stages, both of them
        # each other's neighbour on either side, the batched form would mix up the lengths of both directions.
        "overlap_p2p_comm": True,
        "batch_p2p_comm": False,
    }


def kernel_options(layers: Layers) -> dict[str, Any]:
    """Return Megatron-Core's options of fused kernels and of FP8."""
    if not layers.transformer_engine:
        return {
            "bias_activation_fusion": False,
            "apply_rope_fusion": False,
            "gradient_accumulation_fusion": False,
        }
    options: dict[str, Any] = {
        "bias_activation_fusion": True,
        "apply_rope_fusion": True,
        # Megatron-Core refuses it for its own head where Apex's kernel is absent, though ours needs none.
        "gradient_accumulation_fusion": find_spec("fused_weight_gradient_mlp_cuda") is not None,
    }
    if layers.fp8 == "off":
        return options
    return {
        **options,
        # Transformer Engine's own choice for each: a gradient needs e5m2's range where its scale is coarse.
        "fp8": "hybrid" if layers.fp8 in ("delayed", "tensorwise") else "e4m3",
        "fp8_recipe": layers.fp8,
        "fp8_param": layers.fp8_params,
        # delayed: Transformer Engine's defaults; Megatron-Core's (the last pass alone) saturate more often.
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        # delayed: scales are agreed upon after every micro-batch, of which replicas have different numbers.
        "tp_only_amax_red": True,
    }


def _expert_options(arch: Qwen3Architecture, groups: LayoutSizes, layers: Layers) -> dict[str, Any]:
    """Return Megatron-Core's options of experts; no token is ever dropped, whatever the load."""
    # Megatron-Core checks the dispatcher for dense models too: this one goes with lengths that vary.
    dispatcher = {"moe_token_dispatcher_type": "alltoall"}
    experts = arch.experts
    if experts is None:
        return dispatcher
    return {
        **dispatcher,
        "num_moe_experts": experts.count,
        "moe_grouped_gemm": layers.transformer_engine,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        # A list, even of ones, makes Megatron-Core name the layers of a checkpoint one by one.
        "moe_layer_freq": _expert_layers(arch) if arch.has_dense_layers else 1,
        "expert_model_parallel_size": groups.ep_size,
        "expert_tensor_parallel_size": 1,
        "moe_router_topk": experts.per_token,
        # Softmax over a token's chosen experts is softmax over all of them, renormalised.
        "moe_router_pre_softmax": not experts.renormalize,
        "moe_router_dtype": "fp32",
        # Off until the trainer sets its weight, which depends on the tokens of an optimizer step.
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.0,
    }


def _expert_layers(arch: Qwen3Architecture) -> list[int]:
    return [int(arch.has_experts(layer)) for layer in range(arch.num_layers)]


def model_arguments(arch: Qwen3Architecture, tp: int, vocab_multiple: int) -> dict[str, Any]:
    """Return what of the architecture Megatron-Core's model is told beside its config."""
    return {
        "vocab_size": arch.padded_vocab_size(tp, vocab_multiple),
        "max_sequence_length": arch.max_position_embeddings,
        "share_embeddings_and_output_weights": arch.tied_embeddings,
        "position_embedding_type": "rope",
        "rotary_base": arch.rope_theta,
    }


def build_policy(
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    dtype: torch.dtype = torch.float32,
    vocab_multiple: int = DEFAULT_VOCAB_MULTIPLE,
    recompute: str = "none",
    layers: Layers = LOCAL,
) -> torch.nn.Module:
    """Build this rank's part of the model, with zero matrices: fill it with ``weights.load``.

    Its forward returns hidden states: [1, T, H] on the last stage, Megatron-Core's [T, 1, H] before it. Of an
    interleaved stage, the chunks are joined (see ``chunks.py``).

    Raises:
        ConfigError: the layout cannot split this model.
    """
    check_layout(arch, groups.tp_size, groups.stages, groups.ep_size)
    config = transformer_config(arch, groups, dtype, recompute, layers)
    arguments = model_arguments(arch, groups.tp_size, vocab_multiple)
    return join_chunks(
        _build_chunk(groups, config, layers, arguments, chunk) for chunk in range(groups.stages.chunks)
    )


def _build_chunk(
    groups: ProcessGroups, config: TransformerConfig, layers: Layers, arguments: dict[str, Any], chunk: int
) -> GPTModel:
    number = chunk if groups.stages.interleaved else None
    has_head = groups.is_last_stage and chunk == groups.stages.chunks - 1
    model = GPTModel(
        config=config,
        transformer_layer_spec=transformer_block_spec(config, layers, number),
        pre_process=groups.is_first_stage and chunk == 0,
        post_process=has_head,
        parallel_output=True,
        vp_stage=number,
        **arguments,
    )
    if has_head:
        model.output_layer = PolicyHead.replacing(model.output_layer)
    return _on_device(model)


def _on_device(model: GPTModel) -> GPTModel:
    """Move what Megatron-Core makes on the CPU (routers), and only that: ``model.to`` may unmake FP8."""
    device = platform.device()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device != device:
            tensor.data = tensor.data.to(device)
    return model
