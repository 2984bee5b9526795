"""A stand-in for ``torchvision``, whose wheels do not fit the CPU build of torch.

SGLang imports it for the configurations of image models, whatever model it serves.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

_NAME = "torchvision"
#: Default arguments of image processors name members of ``InterpolationMode``.
_INTERPOLATIONS = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")


class _Unusable:
    """Base of every class of the stand-in: may be subclassed and named, not built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"{_NAME} is not available to SGLang on this machine")


class _Module(types.ModuleType):
    """A package whose capitalised attributes are unusable classes and whose others are submodules."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not name[:1].isupper():
            return importlib.import_module(f"{self.__name__}.{name}")
        members = {member: member.lower() for member in _INTERPOLATIONS}
        made = type(name, (_Unusable,), {"__module__": self.__name__, **members})
        setattr(self, name, made)
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{self.__name__} is not available to SGLang on this machine")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] != _NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Answer ``import torchvision`` and its submodules; transformers keeps believing that it is absent."""
    from transformers.utils import import_utils

    # Asked now, it says "absent" and remembers; asked later, it would look for the stand-in's version.
    import_utils.is_torchvision_available()
    sys.meta_path.insert(0, _Finder())
