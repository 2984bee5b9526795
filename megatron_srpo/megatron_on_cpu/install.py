"""The order in which the CPU answers are put in place."""

import torch

from megatron_srpo.megatron_on_cpu import (
    cuda_calls,
    experts,
    optimizer,
    random_state,
    tensors,
    triton_modules,
)

_installed = False


def install() -> None:
    """Answer Megatron-Core's CUDA calls on the CPU. Idempotent; refuses to run where CUDA exists."""
    global _installed
    if torch.cuda.is_available():
        raise RuntimeError("CPU answers for torch.cuda must not be installed on a machine with CUDA")
    if _installed:
        return
    _installed = True
    # Megatron-Core's jit_fuser is torch.compile; inside dynamo the replaced functions below break.
    torch._dynamo.config.disable = True
    cuda_calls.replace()
    random_state.replace_torch()
    tensors.replace()
    triton_modules.stub_missing()
    random_state.replace_megatron()
    optimizer.replace()
    experts.replace()
