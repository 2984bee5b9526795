"""A stand-in for ``sgl_kernel``, whose wheels need CUDA libraries.

SGLang imports names ending in ``_cpu`` from it on any CPU, but calls them only on processors with AMX, for
speculative decoding and for moving the key-value cache; otherwise it computes with plain PyTorch.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

_NAME = "sgl_kernel"


class _Kernels(types.ModuleType):
    """A module, not a package: SGLang probes submodules and relies on their ImportError."""

    __version__ = "0.0.0+cpu"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.endswith("_cpu"):
            raise AttributeError(f"{_NAME} has no {name} on this machine")

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{_NAME}.{name} has no build for this processor")

        missing.__name__ = name
        setattr(self, name, missing)
        return missing


def install() -> None:
    """Put the stand-in where ``import sgl_kernel`` finds it."""
    sys.modules[_NAME] = _Kernels(_NAME)
