"""Verifiers by name.

A verifier is ``function(prompt, response) -> Score | float``. It is imported where it runs, so that neither
the trainer nor a worker loads what it does not use. Any other verifier is named by its dotted path,
``package.module:function``. An address, ``http://host/path``, names a reward server and no function: the pool
asks it itself (:mod:`megatron_srpo.rewards.remote`).
"""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import ConfigError
from megatron_srpo.rewards.types import Score

Verify = Callable[[Prompt, str], Score | float]


@dataclass(frozen=True)
class Verifier:
    """A verifier ready to run.

    Attributes:
        verify: scores one response; may raise, hang or die when it runs in the pool.
        prepare: loads what the verifier needs for a prompt; its time is not charged to an answer.
        cheap: says whether the verifier needs no time limit for a prompt, so that it may run outside the
            pool.
    """

    verify: Verify
    prepare: Callable[[Prompt], None] | None = None
    cheap: Callable[[Prompt], bool] | None = None


def _math() -> Verifier:
    from megatron_srpo.rewards import math

    return Verifier(math.verify, math.prepare, cheap=lambda prompt: False)


def _reasoning_gym() -> Verifier:
    from megatron_srpo.rewards import reasoning_gym

    return Verifier(reasoning_gym.verify, reasoning_gym.prepare, reasoning_gym.is_cheap)


def _exact() -> Verifier:
    from megatron_srpo.rewards import exact

    return Verifier(exact.verify)


def _multiple_choice() -> Verifier:
    from megatron_srpo.rewards import multiple_choice

    return Verifier(multiple_choice.verify)


def _multiple_choice_lenient() -> Verifier:
    from megatron_srpo.rewards import multiple_choice

    return Verifier(multiple_choice.verify_leniently)


def _tool_use() -> Verifier:
    from megatron_srpo.rewards import tool_use

    return Verifier(tool_use.verify)


BUILT_IN: dict[str, Callable[[], Verifier]] = {
    "math": _math,
    "reasoning_gym": _reasoning_gym,
    "exact": _exact,
    "multiple_choice": _multiple_choice,
    "multiple_choice_lenient": _multiple_choice_lenient,
    "tool_use": _tool_use,
}


def check_name(task: str) -> None:
    """Refuse what can be no verifier's name; imports nothing.

    Raises:
        ConfigError: suggests the nearest name.
    """
    if task in BUILT_IN or ":" in task:
        return
    near = difflib.get_close_matches(task, BUILT_IN, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    raise ConfigError(
        f"no verifier is called {task!r}; {hint} are {', '.join(BUILT_IN)}, "
        "package.module:function for your own, and the http:// address of a reward server"
    )


@lru_cache(maxsize=64)
def load_verifier(task: str) -> Verifier:
    """Import the verifier of a task.

    Raises:
        ConfigError: there is no such verifier, or its module cannot be imported.
    """
    if task in BUILT_IN:
        return BUILT_IN[task]()
    check_name(task)
    return Verifier(load_function(task, "verifier"))


def load_function(name: str, what: str) -> Callable[..., Any]:
    """Import a function of the user's.

    Args:
        name: package.module:function.
        what: it is, for messages.

    Raises:
        ConfigError: its module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # boundary: a user's module may fail in any way while it is imported
        raise ConfigError(
            f"{what} {name!r}: module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = vars(module).get(function_name)
    if not callable(function):
        raise ConfigError(f"{what} {name!r}: module {module_name!r} has no function {function_name!r}")
    return function
