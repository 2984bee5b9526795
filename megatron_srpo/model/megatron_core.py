"""The one door to Megatron-Core for the model and weights rooms.

Megatron-Core must be made usable on this machine before its first import. Doing that here, and not in a
package's ``__init__``, keeps what needs no Megatron (architecture, layout checks) quick to import.
"""

# ruff: noqa: E402  the imports must follow the preparation

from megatron_srpo import platform

platform.prepare_megatron()

from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

__all__ = [
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "Float16Module",
    "GPTModel",
    "ModuleSpec",
    "PackedSeqParams",
    "ProcessGroupCollection",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "dist_checkpointing",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_num_layers_to_build",
    "parallel_state",
    "tensor_parallel",
]
