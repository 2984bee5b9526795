"""A configuration checks itself: types, bounds, choices, nesting, and what one field alone cannot show."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from megatron_srpo.config.base import Config, field_types, matches, option, type_name
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    size: int = option(3, "A size.", minimum=1, maximum=9)


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    path: str = option(help="A required text.")
    rate: float = option(0.5, "A number.", minimum=0, maximum=1)
    count: int | None = option(None, "An integer or nothing.", minimum=1)
    mode: str = option("a", "A choice.", choices=("a", "b"))
    on: bool = option(False, "A switch.")
    names: tuple[str, ...] = option((), "A list.")
    parts: tuple[Inner, ...] = option((), "A list of sections.")
    inner: Inner = option(factory=Inner, help="A section.")
    extra: dict[str, Any] = option(factory=dict, help="A mapping.")

    def validate(self) -> None:
        if self.on and not self.names:
            raise ConfigError("Outer.names is empty, but Outer.on is set")


def test_defaults_and_given_values() -> None:
    config = Outer(path="x", names=("p", "q"), extra={"deep": [1]})
    assert (config.rate, config.count, config.mode, config.inner.size) == (0.5, None, "a", 3)
    assert config.names == ("p", "q")
    assert config.extra == {"deep": [1]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": 3}, r"Outer\.path = 3 is a int; expected text"),
        ({"path": None}, r"Outer\.path = None is a NoneType; expected text"),
        ({"rate": "fast"}, r"Outer\.rate = 'fast' is a str; expected number"),
        ({"rate": True}, r"Outer\.rate = True is a bool; expected number"),
        ({"count": 1.5}, r"Outer\.count = 1\.5 is a float; expected integer or null"),
        ({"count": True}, r"Outer\.count = True is a bool"),
        ({"on": 1}, r"Outer\.on = 1 is a int; expected true or false"),
        ({"names": "pq"}, r"Outer\.names = 'pq' is a str; expected a list of text"),
        ({"names": ("p", 1)}, r"Outer\.names = .* expected a list of text"),
        ({"names": ["p"]}, r"Outer\.names = .* is a list"),
        ({"parts": (Inner(), None)}, r"expected a list of a Inner section"),
        ({"inner": {"size": 3}}, r"Outer\.inner = .* expected a Inner section"),
        ({"extra": {1: "x"}}, r"Outer\.extra = .* expected a mapping"),
    ],
)
def test_a_wrong_type_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer(**{"path": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": -0.01}, r"Outer\.rate = -0\.01 is too small; the least is 0"),
        ({"rate": 1.01}, r"Outer\.rate = 1\.01 is too large; the most is 1"),
        ({"rate": float("nan")}, r"Outer\.rate = nan is too small"),
        ({"count": 0}, r"Outer\.count = 0 is too small; the least is 1"),
        ({"mode": "c"}, r"Outer\.mode = 'c'; choose one of a, b"),
        ({"mode": ""}, r"Outer\.mode = ''; choose one of"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer(**{"path": "x", **fields})


@pytest.mark.parametrize("fields", [{"rate": 0}, {"rate": 1}, {"count": 1}, {"mode": "b"}])
def test_bounds_are_inclusive(fields: dict[str, Any]) -> None:
    assert Outer(**{"path": "x", **fields}).__dict__.items() >= fields.items()


def test_validate_runs_after_the_fields_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"Outer\.names is empty"):
        Outer(path="x", on=True)
    with pytest.raises(ConfigError, match=r"Outer\.on = 'yes' is a str"):
        Outer(path="x", on="yes")  # type: ignore[arg-type]


def test_a_nested_section_checks_itself() -> None:
    with pytest.raises(ConfigError, match=r"Inner\.size = 10 is too large"):
        Outer(path="x", inner=Inner(size=10))


def test_a_required_field_has_no_default() -> None:
    with pytest.raises(TypeError, match="path"):
        Outer()


def test_configs_are_frozen() -> None:
    config = Inner()
    with pytest.raises(FrozenInstanceError):
        config.size = 4  # type: ignore[misc]


def test_every_section_default_is_its_own_object() -> None:
    one, other = Outer(path="x"), Outer(path="x")
    assert one == other
    assert one.extra is not other.extra


@pytest.mark.parametrize(
    ("value", "expected", "answer"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (False, bool, True),
        (None, int | None, True),
        (None, int, False),
        ("1", int | None, False),
        ((), tuple[int, ...], True),
        ((1, 2), tuple[int, ...], True),
        ((1, None), tuple[int | None, ...], True),
        ({"a": 1}, dict[str, int], True),
        ({"a": "b"}, dict[str, int], False),
        (object(), Any, True),
        (Inner(), Inner, True),
        (Inner(), Outer, False),
    ],
)
def test_matches(value: Any, expected: Any, answer: bool) -> None:
    assert matches(value, expected) is answer


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (int, "integer"),
        (float | None, "number or null"),
        (tuple[str, ...], "a list of text"),
        (dict[str, Any], "a mapping"),
        (tuple[Inner, ...], "a list of a Inner section"),
        (bool, "true or false"),
    ],
)
def test_types_are_named_as_a_user_would(expected: Any, name: str) -> None:
    assert type_name(expected) == name


def test_field_types_are_resolved() -> None:
    assert field_types(Inner) == {"size": int}
    assert field_types(Outer)["inner"] is Inner
