"""The order in which the stand-ins are put in place."""

import importlib.util
import sys
from typing import Any

import torch

from megatron_srpo.sglang_on_cpu import kernels, torchvision, triton

_installed = False


def install() -> None:
    """Make ``import sglang`` possible without CUDA. Call it before that import; idempotent.

    SGLang starts its processes anew (``multiprocessing`` spawn), so every one of them must call this: see
    ``rollout/sglang/serve.py``.
    """
    global _installed
    if torch.cuda.is_available():
        raise RuntimeError("stand-ins for CUDA packages must not be installed on a machine with CUDA")
    if _installed:
        return
    _installed = True
    if importlib.util.find_spec("triton") is None:
        triton.install()
    torchvision.install()
    kernels.install()
    # SGLang's debugging looks for it and would load it into every scheduler: a second of processor time.
    modules: Any = sys.modules
    modules["megatron"] = None


def is_installed() -> bool:
    """Say whether this process runs SGLang with the stand-ins."""
    return _installed
