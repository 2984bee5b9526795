"""Packages that only self-play needs, imported at their first use."""

import importlib
from types import ModuleType

from megatron_srpo.errors import ConfigError


def import_extra(module: str) -> ModuleType:
    """Import a module of the extra ``self-play``.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"self-play needs the package of {missing.name!r}, which is not installed; "
            "run: make install-self-play (or pip install 'megatron-srpo[self-play]')"
        ) from missing
