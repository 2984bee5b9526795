"""Stand-ins for Megatron-Core modules that import Triton unconditionally.

They belong to the paged stash of mixture-of-experts models (megatron-core 0.18 and later), which is never
used without CUDA, but importing the pipeline schedules imports them.
"""

import importlib.util
import sys
import types
from typing import Any

_PAGED_STASH_KERNELS = "megatron.core.transformer.moe.ops.paged_stash"  # 0.19
_PAGED_STASH = "megatron.core.transformer.moe.paged_stash"  # 0.18


class _Unusable(types.ModuleType):
    """A module whose every attribute is a function that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def stub_missing() -> None:
    """Register the stand-ins when Triton is absent and this Megatron-Core would import it."""
    if importlib.util.find_spec("triton") is not None:
        return
    kernels = types.ModuleType(_PAGED_STASH_KERNELS)
    kernels.__dict__.update(GLOBAL_BLOCK_SIZE=1024, paged_stash_copy_kernel=None, paged_stash_pop_kernel=None)
    sys.modules[_PAGED_STASH_KERNELS] = kernels
    if _imports_triton(_PAGED_STASH):
        sys.modules[_PAGED_STASH] = _Unusable(_PAGED_STASH)


def _imports_triton(module: str) -> bool:
    """Read the module's file without importing ``megatron.core``."""
    spec = importlib.util.find_spec("megatron")
    locations = spec.submodule_search_locations if spec is not None else None
    relative = module.removeprefix("megatron.").replace(".", "/") + ".py"
    for base in locations or ():
        try:
            with open(f"{base}/{relative}", encoding="utf-8") as source:
                return "\nimport triton" in source.read()
        except FileNotFoundError:
            continue
    return False
