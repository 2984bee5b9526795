"""Which implementation of the row operations a machine gets."""

import functools
import importlib.util

import torch
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.ops.rows import Rows, TorchRows

#: Compute capability from which the kernels are used: Hopper's, on which they were designed.
_LEAST_CAPABILITY = (9, 0)


@functools.cache
def kernels() -> tuple[bool, str]:
    """Say whether this machine uses the Triton kernels, and why or why not."""
    if not platform.has_cuda():
        return False, "PyTorch: no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        found = ".".join(map(str, capability))
        return False, f"PyTorch: compute capability {found}; the Triton kernels need 9.0 (Hopper) or later"
    if importlib.util.find_spec("triton") is None:
        return False, "PyTorch: Triton is not installed"
    return True, "Triton kernels"


def rows_for(tensor: Tensor) -> Rows:
    """Choose for logits on the device of ``tensor``."""
    if tensor.is_cuda and kernels()[0]:
        return _triton_rows()
    return TorchRows()


@functools.cache
def _triton_rows() -> Rows:
    from megatron_srpo.ops.triton_rows import TritonRows

    return TritonRows()
