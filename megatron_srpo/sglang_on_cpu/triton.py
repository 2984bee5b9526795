"""A stand-in for Triton where it is not installed (its wheel is large and useless without a GPU).

SGLang decorates kernels with it at import. For macOS it ships a stand-in of its own, which is used here and
completed by the names that SGLang and torch ask for on Linux.
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

_STAND_IN = "_sglang_platform_stubs"


class _Constexpr:
    """``triton.language.constexpr``: wraps a compile-time constant."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


def install() -> None:
    """Answer ``import triton`` and its submodules; torch keeps believing that Triton is absent.

    Raises:
        ImportError: SGLang is not installed, or its stand-in has moved.
    """
    from torch.utils import _triton

    _triton.has_triton_package()  # asked now, it says "absent" and remembers
    stand_in = _load_stand_in()
    sys.meta_path.insert(0, stand_in._TritonFinder())
    root = stand_in._make_mock("triton")
    root.__dict__.update(
        __version__="3.0.0",
        cdiv=stand_in._cdiv,
        next_power_of_2=stand_in._next_power_of_2,
        Config=stand_in._Config,
    )
    for module, names in _names(stand_in).items():
        _add(stand_in, f"triton.{module}", names)


def _names(stand_in: Any) -> dict[str, dict[str, Any]]:
    """Return, parents first, the submodules and the names that importers expect in them."""

    def base(name: str, parent: type = stand_in._StubBase) -> type:
        return type(name, (parent,), {})

    return {
        "language": {"constexpr": _Constexpr},
        "runtime": {},
        "runtime.jit": {"JITFunction": base("JITFunction"), "KernelInterface": base("KernelInterface")},
        "runtime.cache": {"triton_key": stand_in._triton_key},
        "runtime.autotuner": {
            "OutOfResources": base("OutOfResources", Exception),
            "PTXASError": base("PTXASError", Exception),
        },
        "compiler": {"CompiledKernel": base("CompiledKernel")},
        "compiler.compiler": {"ASTSource": base("ASTSource"), "triton_key": stand_in._triton_key},
        "backends": {},
        "backends.compiler": {"GPUTarget": base("GPUTarget")},
    }


def _add(stand_in: Any, name: str, names: dict[str, Any]) -> None:
    module = stand_in._make_mock(name)
    module.__dict__.update(names)
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)


def _load_stand_in() -> types.ModuleType:
    """Load SGLang's file by its path: importing the package would import Triton first."""
    package = importlib.util.find_spec("sglang")
    folders = list(package.submodule_search_locations or ()) if package else []
    if not folders:
        raise ImportError("SGLang is not installed; run: make install-sglang")
    path = Path(folders[0]) / "_platform_stubs.py"
    spec = importlib.util.spec_from_file_location(_STAND_IN, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"{path} does not exist in this SGLang; install the version that setup.py names")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_STAND_IN] = module
    spec.loader.exec_module(module)
    return module
