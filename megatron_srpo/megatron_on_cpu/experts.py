"""What Megatron-Core's layers of experts take for granted: Transformer Engine, and tensors on a GPU."""

from typing import Any

import torch


def replace() -> None:
    """Let the router do without Transformer Engine, and the dispatcher with counts that are on the CPU."""
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    utilities: Any = moe_utils
    # The router asks whether there is such a product, but the name exists only where there is.
    utilities.te_general_gemm = getattr(utilities, "te_general_gemm", None)
    dispatcher: Any = token_dispatcher
    dispatcher.maybe_move_tensor_to_cpu = _move_to_cpu


def _move_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Turn counts into NumPy where asked, which Megatron-Core does only with those it moves off a GPU."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor
