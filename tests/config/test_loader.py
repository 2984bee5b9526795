"""YAML and overrides to typed configuration: every refusal names the dotted key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.base import Config, option
from megatron_srpo.config.loader import (
    build,
    load_config,
    parse_value,
    read_yaml,
    to_tree,
    to_yaml,
    with_overrides,
)
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Leaf(Config):
    name: str = option(help="Required in every leaf.")
    size: int = option(10, "A size.", minimum=1)
    weight: float | None = option(None, "A weight.")

    def validate(self) -> None:
        if self.name == "wrong":
            raise ConfigError(f"a leaf cannot be called {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class Branch(Config):
    rate: float = option(0.1, "A rate.", minimum=0)
    low: float = option(0.0, "Below high.")
    high: float = option(1.0, "Above low.")
    leaves: tuple[Leaf, ...] = option((), "Leaves.")
    first: Leaf | None = option(None, "One more leaf.")
    tags: tuple[str, ...] = option((), "Texts.")
    extra: dict[str, Any] = option(factory=dict, help="Anything.")
    quick: bool = option(True, "A switch.")

    def validate(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"Branch.low = {self.low} is above high = {self.high}")


@dataclass(frozen=True, kw_only=True)
class Tree(Config):
    title: str = option("t", "A text.")
    branch: Branch = option(factory=Branch, help="A section.")


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Tree:
    return load_config(Tree, write(folder, text), overrides)


def test_a_file_fills_the_tree(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "title: café\n"
        "branch:\n"
        "  rate: 3\n"
        "  leaves: [{name: a, weight: 2}, {name: b, size: 5}]\n"
        "  tags: [x, y]\n",
    )
    assert config == Tree(
        title="café",
        branch=Branch(
            rate=3.0,
            leaves=(Leaf(name="a", weight=2.0), Leaf(name="b", size=5)),
            tags=("x", "y"),
        ),
    )
    assert type(config.branch.rate) is float
    assert type(config.branch.leaves[0].weight) is float


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(Tree, None) == Tree()
    assert load_config(Tree, None, ["branch.rate=2"]).branch.rate == 2.0


def test_an_empty_file_is_an_empty_tree(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing yet\n") == Tree()


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1_0e-5", "+1e-4", "10.e-5"])
def test_every_spelling_of_a_number_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"branch: {{rate: {text}}}").branch.rate == 1e-4
    assert load_config(Tree, None, [f"branch.rate={text}"]).branch.rate == 1e-4


@pytest.mark.parametrize("text", ["'1e-4'", '"1e-4"'])
def test_a_number_in_quotes_stays_text(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"title: {text}").title == "1e-4"
    with pytest.raises(ConfigError, match=r"branch\.rate = '1e-4' is a text; expected number"):
        load(tmp_path, f"branch: {{rate: {text}}}")


@pytest.mark.parametrize("text", ["off", "on", "yes", "No"])
def test_words_that_old_yaml_takes_for_booleans_are_text(tmp_path: Path, text: str) -> None:
    """``report.wandb.mode=off`` must mean the choice "off"."""
    assert load(tmp_path, f"title: {text}").title == text
    assert load_config(Tree, None, [f"title={text}"]).title == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("FALSE", False)])
def test_booleans(tmp_path: Path, text: str, value: bool) -> None:
    assert load(tmp_path, f"branch: {{quick: {text}}}").branch.quick is value


class TestOverrides:
    TEXT = "branch:\n  leaves: [{name: a}, {name: b, size: 5}]\n  tags: [x, y]\n"

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("title=new", {"title": "new"}),
            ("title='1'", {"title": "1"}),
            ("title=a=b", {"title": "a=b"}),
            ("branch.quick=false", {"branch.quick": False}),
            ("branch.leaves.1.size=7", {"branch.leaves.1.size": 7, "branch.leaves.0.size": 10}),
            ("branch.tags.0=z", {"branch.tags": ["z", "y"]}),
            ("branch.tags=[]", {"branch.tags": []}),
            ("branch.leaves=[{name: c}]", {"branch.leaves.0.name": "c"}),
            ("branch.extra.deep.er=[1, {a: 2}]", {"branch.extra": {"deep": {"er": [1, {"a": 2}]}}}),
            ("branch.first.name=f", {"branch.first.name": "f"}),
            ("branch.first=null", {"branch.first": None}),
        ],
    )
    def test_one_key_changes(self, tmp_path: Path, override: str, expected: dict[str, Any]) -> None:
        plain = to_tree(load(tmp_path, self.TEXT, override))
        for key, value in expected.items():
            node: Any = plain
            for part in key.split("."):
                node = node[int(part)] if isinstance(node, list) else node[part]
            assert node == value, key

    def test_the_last_of_two_wins(self, tmp_path: Path) -> None:
        assert load(tmp_path, self.TEXT, "title=one", "title=two").title == "two"

    def test_a_later_override_reaches_into_an_earlier_one(self, tmp_path: Path) -> None:
        config = load(tmp_path, self.TEXT, "branch.leaves=[{name: c}]", "branch.leaves.0.size=3")
        assert config.branch.leaves == (Leaf(name="c", size=3),)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("title", r"override 'title' must look like section\.key=value"),
            ("=3", r"override '=3' must look like"),
            ("title=[1", r"override 'title=\[1': the value is not valid YAML"),
            ("title=2020-13-45", r"override 'title=2020-13-45': the value is not valid YAML.*month"),
            ("branch.leaves.2.size=1", r"'branch\.leaves\.2': '2' is not an index into a list of 2"),
            ("branch.leaves.two.size=1", r"'branch\.leaves\.two': 'two' is not an index"),
            ("branch.leaves.-1.size=1", r"'-1' is not an index"),
            ("branch.tags.5=z", r"'branch\.tags\.5': '5' is not an index into a list of 2"),
            ("branch.tags.0.deeper=z", r"branch\.tags\.0 = 'x' is a value, not a section"),
            ("branch.leaves.0.name.deeper=z", r"branch\.leaves\.0\.name = 'a' is a value, not a section"),
            ("branch.leaves.1.sise=4", r"unknown config key 'branch\.leaves\.1\.sise'; did you mean 'size'"),
            ("brnch.rate=4", r"unknown config key 'brnch'; did you mean 'branch'"),
        ],
    )
    def test_refusals(self, tmp_path: Path, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, self.TEXT, override)

    def test_an_alias_does_not_couple_two_places(self, tmp_path: Path) -> None:
        text = "branch:\n  leaves:\n    - &leaf {name: a, size: 5}\n    - *leaf\n"
        config = load(tmp_path, text, "branch.leaves.0.size=7")
        assert [leaf.size for leaf in config.branch.leaves] == [7, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x", r"unknown config key 'titel'; did you mean 'title'\?"),
        ("branch: {rat: 1}", r"unknown config key 'branch\.rat'; did you mean 'rate'\?"),
        ("branch: {leaves: [{nam: a}]}", r"unknown config key 'branch\.leaves\.0\.nam'; did you mean 'name'"),
        ("xyzzy: 1", r"unknown config key 'xyzzy'; known keys: branch, title"),
        ("1: x", r"unknown config key '1'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "branch: {leaves: [{size: 3}]}",
            r"missing config key 'branch\.leaves\.0\.name': Required in every leaf",
        ),
        ("branch: {first: {}}", r"missing config key 'branch\.first\.name'"),
    ],
)
def test_a_missing_key_is_named_with_its_meaning(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: 3", r"title = 3 is a integer; expected text"),
        ("title: null", r"title = None is a NoneType; expected text"),
        ("branch: {rate: fast}", r"branch\.rate = 'fast' is a text; expected number"),
        ("branch: {quick: yes}", r"branch\.quick = 'yes' is a text; expected true or false"),
        ("branch: {rate: true}", r"branch\.rate = True is a true or false; expected number"),
        ("branch: {quick: 1}", r"branch\.quick = 1 is a integer; expected true or false"),
        (
            "branch: {leaves: [{name: a, size: 1.5}]}",
            r"branch\.leaves\.0\.size = 1\.5 is a number; expected integer",
        ),
        ("branch: {leaves: [{name: a}, {name: b, size: 0}]}", r"branch\.leaves\.1\.size = 0 is too small"),
        ("branch: {leaves: [a]}", r"branch\.leaves\.0 = 'a' must be a section with keys"),
        ("branch: {leaves: {name: a}}", r"branch\.leaves = \{'name': 'a'\} is a dict; expected a list"),
        ("branch: {tags: [x, 1]}", r"branch\.tags\.1 = 1 is a integer; expected text"),
        ("branch: {tags: x}", r"branch\.tags = 'x' is a text; expected a list of text"),
        ("branch: {extra: [1]}", r"branch\.extra = \[1\] is a list; expected a mapping"),
        ("branch: {extra: {1: 2}}", r"branch\.extra = .* expected a mapping"),
        ("branch: {first: 3}", r"branch\.first = 3 must be a section with keys"),
        ("branch: 3", r"branch = 3 must be a section with keys"),
        ("branch:", r"branch = None must be a section with keys"),
    ],
)
def test_a_wrong_type_names_the_dotted_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("branch: {low: 2}", r"^branch\.low = 2\.0 is above high = 1\.0$"),
        # A check that does not know its own place is told where it failed.
        (
            "branch: {leaves: [{name: a}, {name: wrong}]}",
            r"^branch\.leaves\.1: a leaf cannot be called 'wrong'$",
        ),
    ],
)
def test_a_failed_cross_check_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [1", r"config\.yaml is not valid YAML: .*line 1"),
        ("title: a\n\tbranch: b", r"config\.yaml is not valid YAML"),
        ("title: a\nbranch: {rate: 1}\ntitle: b", r"not valid YAML: 'title' is given twice.*line 3"),
        ("title: 2020-13-45", r"not valid YAML: month must be in 1\.\.12"),
        ("title: !!python/object:os.system {}", r"not valid YAML: could not determine a constructor"),
        ("- a\n- b", r"must hold a mapping of sections, not a list"),
        ("only words", r"must hold a mapping of sections, not a str"),
    ],
)
def test_what_is_not_a_mapping_is_refused_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load(tmp_path, text)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config file .*absent\.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("title: café".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml is not UTF-8 text .*save it as UTF-8"):
        read_yaml(path)


def test_build_takes_a_ready_section() -> None:
    assert build(Tree, {"branch": Branch(rate=2.0)}).branch.rate == 2.0


def test_to_tree_is_plain() -> None:
    config = Tree(branch=Branch(leaves=(Leaf(name="a"),), tags=("x",), extra={"k": (1, 2)}))
    plain = to_tree(config)["branch"]
    assert plain["leaves"] == [{"name": "a", "size": 10, "weight": None}]
    assert (plain["tags"], plain["extra"], plain["first"]) == (["x"], {"k": [1, 2]}, None)


def test_to_yaml_keeps_the_order_of_declaration() -> None:
    assert [line.split(":")[0] for line in to_yaml(Tree()).splitlines() if line[0] != " "] == [
        "title",
        "branch",
    ]


def test_overrides_of_a_built_config_leave_it_as_it_was() -> None:
    config = Tree(branch=Branch(leaves=(Leaf(name="a"),), extra={"list": [1, 2]}))
    changed = with_overrides(config, ["branch.leaves.0.size=3", "branch.extra.list.0=7", "title=new"])
    assert (changed.title, changed.branch.leaves[0]) == ("new", Leaf(name="a", size=3))
    assert changed.branch.extra == {"list": [7, 2]}
    assert config == Tree(branch=Branch(leaves=(Leaf(name="a"),), extra={"list": [1, 2]}))


@pytest.mark.parametrize("override", ["branch.rate=-1", "branch.low=2", "branch.nothing=1"])
def test_overrides_of_a_built_config_are_checked(override: str) -> None:
    with pytest.raises(ConfigError, match=r"branch"):
        with_overrides(Tree(), [override])


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        ("3", float | None, 3.0),
        ("null", float | None, None),
        ("[a, b]", tuple[str, ...], ("a", "b")),
        ("[{name: a}]", tuple[Leaf, ...], (Leaf(name="a"),)),
    ],
)
def test_one_value_is_read_as_its_type(text: str, expected: Any, value: object) -> None:
    found = parse_value(text, expected)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["[", "many"])
def test_one_value_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="value"):
        parse_value(text, int | None)
