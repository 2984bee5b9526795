"""YAML files and dotted overrides to typed configuration, and back.

Every error names the dotted key. A mistyped key is refused with the nearest right name.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from megatron_srpo.config.base import Config, field_types, matches, type_name
from megatron_srpo.errors import ConfigError

C = TypeVar("C", bound=Config)


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Build ``cls`` from a YAML file (or from its defaults alone) and ``a.b=c`` overrides.

    Override values are read as YAML: ``optimizer.learning_rate=1e-4``, ``rollout.engine=local``,
    ``data.train.0.size=100``.
    """
    tree = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(tree, override)
    return build(cls, tree)


def with_overrides(config: C, overrides: Sequence[str]) -> C:
    """Return a config with ``a.b=c`` overrides applied, written as for :func:`load_config`."""
    tree = _unshared(to_tree(config))
    for override in overrides:
        _apply_override(tree, override)
    return build(type(config), tree)


def parse_value(text: str, expected: Any, path: str = "value") -> Any:
    """Read one value, written as YAML, into the declared type of a field."""
    return _convert(_parse(text, f"{path} {text!r} is not valid YAML"), expected, path)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping, with an error that names the file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    tree = _parse(text, f"{path} is not valid YAML")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not a {type(tree).__name__}")
    return tree


_BOOLEAN = "tag:yaml.org,2002:bool"


def _without_base_60(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """YAML 1.1 reads 10:00:00 as the number 36000; here it is a text."""
    return re.compile(rf"(?!.*:)(?:{pattern.pattern})", pattern.flags)


class _Loader(yaml.SafeLoader):
    """Safe YAML as users mean it: 1e-4 (without a dot) is a number, ``off`` and 10:00 are texts, no key comes
    twice."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, _without_base_60(pattern)) for tag, pattern in pairs if tag != _BOOLEAN]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """The writer to :class:`_Loader`: puts quotes around a text such as 1e-4, or it would return a number."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escape the line breaks of Unicode, which a YAML reader would turn into spaces."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _parse(text: str, complaint: str) -> Any:
    """Read YAML. PyYAML raises a bare ValueError for an impossible date or number."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{complaint}: {error}") from error


def _unshared(value: Any) -> Any:
    """Copy what a YAML alias repeats, so that an override of one place does not change the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def build(cls: type[C], tree: Mapping[str, Any], path: str = "") -> C:
    """Turn a tree of plain values into ``cls``; ``path`` is the dotted place for error messages."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path or cls.__name__} = {tree!r} must be a section with keys")
    types_ = field_types(cls)
    for key in tree:
        if key not in types_:
            raise ConfigError(_unknown_key(_join(path, str(key)), str(key), list(types_)))
    values = {key: _convert(value, types_[key], _join(path, key)) for key, value in tree.items()}
    _require_all(cls, values, path)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(_with_path(str(error), cls.__name__, path)) from error


def to_tree(config: Config) -> dict[str, Any]:
    """Return plain nested dicts and lists, ready for YAML or JSON."""
    return {field.name: _plain(config.__dict__[field.name]) for field in dataclasses.fields(config)}


def to_yaml(config: Config) -> str:
    """Write a config so that :func:`load_config` reads back the same."""
    return yaml.dump(to_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return to_tree(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unknown_key(dotted: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown config key {dotted!r}; {hint}"


def _require_all(cls: type[Config], values: Mapping[str, Any], path: str) -> None:
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ConfigError(
                f"missing config key {_join(path, field.name)!r}: {field.metadata.get('help', '')}"
            )


def _with_path(message: str, class_name: str, path: str) -> str:
    """Say where: ``ClassName.field`` at the head of a message becomes the dotted key that the user wrote."""
    prefix = f"{class_name}."
    if message.startswith(prefix):
        return _join(path, message.removeprefix(prefix))
    return message if path in message else f"{path}: {message}"


def _convert(value: Any, expected: Any, path: str) -> Any:
    """Turn YAML's plain value into the declared type where that is exact; refuse otherwise."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, path)
    if isinstance(expected, type) and issubclass(expected, Config):
        return value if isinstance(value, expected) else build(expected, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, arguments[0], f"{path}.{i}") for i, item in enumerate(value))
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not matches(value, expected):
        raise ConfigError(f"{path} = {value!r} is a {_value_name(value)}; expected {type_name(expected)}")
    return value


def _convert_union(value: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    rest = [part for part in arguments if part is not type(None)]
    for part in rest:
        if matches(value, part):
            return _convert(value, part, path)
    return _convert(value, rest[0], path)


def _value_name(value: Any) -> str:
    return {str: "text", int: "integer", float: "number", bool: "true or false", list: "list"}.get(
        type(value), type(value).__name__
    )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must look like section.key=value")
    value = _parse(text, f"override {override!r}: the value is not valid YAML")
    *parents, last = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _descend(node, part, ".".join(parents[: depth + 1]))
    _assign(node, last, value, key)


def _descend(node: Any, part: str, path: str) -> Any:
    place: Any = _index(node, part, path) if isinstance(node, list) else part
    if isinstance(node, dict) and node.get(part) is None:
        node[part] = {}
    if not isinstance(node[place], dict | list):
        raise ConfigError(f"override: {path} = {node[place]!r} is a value, not a section")
    return node[place]


def _assign(node: Any, last: str, value: Any, path: str) -> None:
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    else:
        node[last] = value


def _index(node: list, part: str, path: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"override {path!r}: {part!r} is not an index into a list of {len(node)} entries")
    return int(part)
