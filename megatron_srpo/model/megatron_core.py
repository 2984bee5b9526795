"""The one door to Megatron-Core for the model, weights and training rooms.

Megatron-Core must be made usable on this machine before its first import. Doing that here, and not in a
package's ``__init__``, keeps what needs no Megatron (architecture, layout checks) quick to import.
"""

import warnings

from megatron_srpo import platform

with warnings.catch_warnings():
    # It announces, file by file, that it does without Apex and Transformer Engine. So we know.
    warnings.filterwarnings("ignore", message=".*Apex (is|are) not installed")
    platform.prepare_megatron()
    from megatron.core import __version__ as version
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
    from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.extensions.transformer_engine import TENorm
    from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        gather_from_sequence_parallel_region,
    )
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

__all__ = [
    "HAVE_APEX_OR_TE",
    "CheckpointingException",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "GPTModel",
    "MegatronOptimizer",
    "MegatronOptimizerConfig",
    "ModuleSpec",
    "OptimizerParamScheduler",
    "PackedSeqParams",
    "ProcessGroupCollection",
    "ShardedObject",
    "TENorm",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "clip_grad_by_total_norm_fp32",
    "dequantize_fp8_tensor",
    "dist_checkpointing",
    "finalize_model_grads",
    "force_all_tensors_to_non_fp8",
    "gather_from_sequence_parallel_region",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_gpt_layer_with_transformer_engine_spec",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "get_transformer_layer_offset",
    "is_float8tensor",
    "load_sharded_metadata",
    "make_sharded_optimizer_tensor",
    "parallel_state",
    "tensor_parallel",
    "version",
]
