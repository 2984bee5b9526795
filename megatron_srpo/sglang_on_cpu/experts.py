"""The choice of experts without a kernel.

On a processor without AMX, SGLang's choice of experts calls a CUDA kernel all the same; its PyTorch form,
which it keeps for compilation, does the same work.
"""

from typing import Any


def choose(original: Any, topk: Any, *arguments: Any, **options: Any) -> Any:
    """Let SGLang's ``TopK.forward_native`` answer for ``forward_cpu``."""
    return topk.forward_native(*arguments, **options)
