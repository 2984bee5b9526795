"""The base of all configuration dataclasses: each checks itself when it is built.

A field is declared with :func:`option`, which carries the help text and the bounds that
:class:`Config` enforces. Values must already have the declared type; turning text into
values is the loader's work (``config/loader.py``).
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from megatron_srpo.errors import ConfigError


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    choices: Iterable[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare one configuration field.

    Args:
        default: value when the key is absent; leave out to make the key required.
        help: one sentence for ``--help`` and the documentation.
        factory: builds the default when it is itself a :class:`Config`.
        choices: the only values allowed.
        minimum, maximum: inclusive bounds for numbers.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices is not None else None,
        "minimum": minimum,
        "maximum": maximum,
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base class. Building an instance checks types, choices and bounds, then calls :meth:`validate`."""

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for field in dataclasses.fields(self):
            _check_field(type(self).__name__, field, hints[field.name], self.__dict__[field.name])
        self.validate()

    def validate(self) -> None:
        """Check what one field alone cannot show. Subclasses raise :class:`ConfigError`."""


def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved type of every field of a config class."""
    return typing.get_type_hints(cls)


def _check_field(owner: str, field: dataclasses.Field, expected: Any, value: Any) -> None:
    if not matches(value, expected):
        raise ConfigError(
            f"{owner}.{field.name} = {value!r} is a {type(value).__name__}; expected {type_name(expected)}"
        )
    if value is None or not field.metadata:
        return
    choices, low, high = (field.metadata[key] for key in ("choices", "minimum", "maximum"))
    if choices is not None and value not in choices:
        raise ConfigError(f"{owner}.{field.name} = {value!r}; choose one of {', '.join(map(str, choices))}")
    if low is not None and not value >= low:
        raise ConfigError(f"{owner}.{field.name} = {value!r} is too small; the least is {low}")
    if high is not None and not value <= high:
        raise ConfigError(f"{owner}.{field.name} = {value!r} is too large; the most is {high}")


def matches(value: Any, expected: Any) -> bool:
    """Say whether ``value`` has the declared type ``expected`` (an int is accepted where a float is)."""
    if expected is Any:
        return True
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, part) for part in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(matches(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            matches(key, arguments[0]) and matches(item, arguments[1]) for key, item in value.items()
        )
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def type_name(expected: Any) -> str:
    """Write a type the way a user would say it."""
    if expected is type(None):
        return "null"
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments)
    if origin is tuple:
        return f"a list of {type_name(arguments[0])}"
    if origin is dict:
        return "a mapping"
    if dataclasses.is_dataclass(expected):
        return f"a {typing.cast(type, expected).__name__} section"
    return {float: "number", int: "integer", str: "text", bool: "true or false"}.get(expected, str(expected))
