"""Device, stream and profiler calls of ``torch.cuda``."""

from collections.abc import Callable
from typing import Any

import torch


class _NoStream:
    """Stands for a CUDA stream or event where work is done in program order anyway."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> "_NoStream":
        return self

    def synchronize(self) -> None:
        pass

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass


def _do_nothing() -> Callable[..., None]:
    # A new function for each name: torch.compile keeps one rule per function and refuses a second.
    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    return nothing


def replace() -> None:
    """Replace device queries by the CPU device, and synchronisation by nothing."""
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")  # Megatron-Core passes it on as ``device=`` only
    for name in ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats"):
        setattr(cuda, name, _do_nothing())
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _do_nothing(), _do_nothing()
    cuda.current_stream = cuda.default_stream = cuda.stream = _NoStream
    cuda.Stream = _NoStream
