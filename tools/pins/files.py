"""The pins, and what ``constraints/pins.toml`` says about them."""

import ast
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from megatron_srpo.errors import UserError

#: The image whose CUDA toolkit compiles; its tag begins with the toolkit's version.
BASE_IMAGE = re.compile(r"^FROM nvidia/cuda:(?P<cuda>\d+\.\d+\.\d+)-\S+?-ubuntu(?P<ubuntu>\d+\.\d+)\S*", re.M)
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
#: ``name==version`` or, for what no index has, ``name @ git+https://...@commit``.
PIN = re.compile(rf"^(?P<name>{NAME})\s*(?:==\s*(?P<version>[^\s;#]+)|@\s*(?P<url>git\+\S+@[0-9a-f]{{40}}))$")


class PinsError(UserError):
    """A file of pins that cannot be read, or a package index that cannot be asked."""


class NoIndexError(PinsError):
    """The package index does not answer."""


@dataclass(frozen=True)
class Pin:
    """One package at one version; ``version`` is None for a commit of a repository."""

    name: str
    version: Version | None
    text: str


@dataclass(frozen=True)
class Source:
    """A package without a wheel: what it declares is copied from the place that ``where`` names."""

    requires: tuple[Requirement, ...]
    where: str


@dataclass(frozen=True)
class Override:
    """Requirements of one package that are left unmet on purpose.

    Attributes:
        of: the package that declares them.
        needs: names of what it asks for.
        why: what makes that right.
    """

    of: str
    needs: frozenset[str]
    why: str


@dataclass(frozen=True)
class PinSet:
    """Everything that is installed together.

    Attributes:
        name: stem of the constraints file, e.g. ``gpu-py312``.
        python: full version, e.g. ``3.12.3``.
        glibc: minor version of glibc 2 of the machine that installs the wheels.
        pins: by canonical name.
        wanted: what the project asks for, with the reason.
        sources: what packages without a wheel declare.
        dockerfile: the image's, None where the pins are for no image.
    """

    name: str
    python: Version
    glibc: int
    pins: dict[str, Pin]
    wanted: tuple[tuple[Requirement, str], ...] = ()
    sources: dict[str, Source] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    dockerfile: Path | None = None


def read_sets(folder: Path) -> list[PinSet]:
    """Read every set that ``folder/pins.toml`` describes.

    Raises:
        PinsError: a file is missing or has a line that is neither a comment nor a pin.
    """
    try:
        table = tomllib.loads((folder / "pins.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise PinsError(f"{folder / 'pins.toml'}: {error}") from error
    shared = table.pop("overridden", [])
    return [read_set(folder, name, entry, shared) for name, entry in table.items()]


def read_set(folder: Path, name: str, entry: Mapping[str, Any], shared: list[dict[str, Any]]) -> PinSet:
    """Read one set: its table of ``pins.toml`` and the files of pins that it names."""
    pins: dict[str, Pin] = {}
    for file in entry["files"]:
        for pin in read_pins(folder / file):
            if pin.name in pins:
                raise PinsError(f"{folder / file}: {pin.name} is pinned twice; keep one line")
            pins[pin.name] = pin
    asked = {line: place for place, line in project(folder.parent, entry["extras"])}
    sources: dict[str, Source] = {
        canonicalize_name(package): Source(tuple(map(requirement, given["requires"])), given["where"])
        for package, given in entry.get("source", {}).items()
    }
    overrides = [
        Override(canonicalize_name(o["of"]), frozenset(map(canonicalize_name, o["needs"])), o["why"])
        for o in shared
        if name in o["sets"]
    ]
    dockerfile = entry.get("dockerfile")
    return PinSet(
        name,
        Version(entry["python"]),
        int(entry["glibc"].removeprefix("2.")),
        pins,
        tuple((requirement(line), why) for line, why in {**asked, **entry.get("wanted", {})}.items()),
        sources,
        tuple(overrides),
        folder.parent / dockerfile if dockerfile else None,
    )


def read_pins(path: Path) -> list[Pin]:
    """Read the lines of a requirements file that pins everything it names."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise PinsError(f"{path}: {error.strerror}") from error
    return [
        parse_pin(line.split("#")[0].strip(), f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.split("#")[0].strip()
    ]


def parse_pin(line: str, place: str) -> Pin:
    """Read one pin."""
    found = PIN.match(line)
    try:
        version = Version(found["version"]) if found and found["version"] else None
    except InvalidVersion:
        found = None
    if not found:
        raise PinsError(
            f"{place}: {line!r} is not a pin; write name==version or name @ git+https://...@commit"
        )
    return Pin(canonicalize_name(found["name"]), version, line)


def requirement(line: str) -> Requirement:
    """Read one requirement."""
    try:
        return Requirement(line)
    except InvalidRequirement as error:
        raise PinsError(f"{line!r} is not a requirement: {error}") from error


def project(root: Path, extras: list[str]) -> list[tuple[str, str]]:
    """Return (place, requirement) for what this project declares, read from setup.py without running it."""
    given: dict[str, Any] = {}
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Dict):
            given[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    lines = [("setup.py", line) for line in given["REQUIREMENTS"]]
    for extra in extras:
        lines += [(f"setup.py, extra {extra}", line) for line in given["EXTRAS"][extra]]
    return lines


def base_image(dockerfile: Path) -> tuple[Version, str]:
    """Return the CUDA version and the Ubuntu release of a Dockerfile's base image."""
    found = BASE_IMAGE.search(dockerfile.read_text())
    if found is None:
        raise PinsError(f"{dockerfile}: no line `FROM nvidia/cuda:<version>-...-ubuntu<release>`")
    return Version(found["cuda"]), found["ubuntu"]
