"""What ``to_yaml`` writes, ``load_config`` reads back exactly: resuming a run compares the two."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_srpo.config.base import Config, option
from megatron_srpo.config.loader import load_config, to_tree, to_yaml
from megatron_srpo.config.run import RunConfig

ROOT = Path(__file__).parents[2]
C = TypeVar("C", bound=Config)


@dataclass(frozen=True, kw_only=True)
class Item(Config):
    text: str = option("", "Text.")
    number: float | None = option(None, "A number.")


@dataclass(frozen=True, kw_only=True)
class Everything(Config):
    text: str = option("", "Text.")
    whole: int = option(0, "An integer.")
    number: float = option(0.0, "A number.")
    switch: bool = option(False, "A switch.")
    maybe: str | None = option(None, "Text or nothing.")
    words: tuple[str, ...] = option((), "Texts.")
    items: tuple[Item, ...] = option((), "Sections.")
    extra: dict[str, Any] = option(factory=dict, help="Anything that YAML can hold.")


def read_back(config: C) -> C:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        return load_config(type(config), path)


# No lone surrogates: they have no UTF-8 form, so no file can hold them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
items = st.builds(Item, text=texts, number=st.none() | numbers)
everything = st.builds(
    Everything,
    text=texts,
    whole=st.integers(),
    number=numbers,
    switch=st.booleans(),
    maybe=st.none() | texts,
    words=st.lists(texts, max_size=3).map(tuple),
    items=st.lists(items, max_size=3).map(tuple),
    extra=st.dictionaries(texts, plain, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(everything)
@example(
    Everything(text="1e-4", words=("1e5", "off", "yes", "null", "~", "", " ", "1:30", "2020-01-01", "0x1"))
)
@example(Everything(text="\x85", words=("a\u2028b", "\u2029", "\ufeff", "\r\n", "\ttab", "\x00", "é 数 😀")))
@example(Everything(text="# no comment", maybe="a: b", words=("- x", "&a", "*a", "!t", "|", "%", "<<", "=")))
@example(Everything(number=1e-05, whole=-3, extra={"1": 1, "true": True, "1e3": 1e300}))
def test_any_value_comes_back(config: Everything) -> None:
    back = read_back(config)
    assert back == config
    assert to_tree(back) == to_tree(config)
    assert type(back.number) is float


def same_value(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["output_dir='1e5'", "report.wandb.tags=['on', '2e3']"],
        ["algorithm.policy.dual_clip=3", "data.train.0.config.min_terms=1", "optimizer.learning_rate=1e-6"],
    ],
)
def test_the_quickstart_comes_back(overrides: list[str]) -> None:
    config = load_config(RunConfig, ROOT / "examples" / "quickstart.yaml", overrides)
    back = read_back(config)
    assert back == config
    assert to_yaml(back) == to_yaml(config)
    assert same_value(back.algorithm.policy.dual_clip, config.algorithm.policy.dual_clip)


def test_the_defaults_come_back() -> None:
    config = load_config(RunConfig, None, ["model.path=somewhere"])
    assert read_back(config) == config
