"""What a package index says of pinned versions, through pip and without installing anything."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.pins.files import NoIndexError, Pin, PinsError, PinSet

# Reads a remote wheel's metadata without fetching the wheel, also from an index that serves it no other way.
LIGHT_PIP, LIGHT_PIP_FROM = "pip>=26,<27", Version("26")
PATIENCE = ("--retries", "2", "--timeout", "15")
#: pip processes side by side: nearly all of their time is waiting for the index.
PROCESSES = 8
TIMEOUT_S = 900
OLD_PLATFORMS = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")
NO_MATCH = re.compile(r"No matching distribution found for (?P<name>[^\s=]+)==")
OTHERS = re.compile(r"\(from versions: (?P<versions>[^)]*)\)")
UNREACHABLE = ("Retrying (", "connection broken", "Could not fetch URL", "Max retries exceeded")
#: Markers of requirements are read by Python's own parser, which some versions cannot do in several threads
#: at once (python/cpython#106905).
PARSING = Lock()


@dataclass(frozen=True)
class Metadata:
    """What one version declares."""

    requires_python: SpecifierSet
    requires: tuple[Requirement, ...]


@dataclass(frozen=True)
class Answers:
    """What the index has.

    Attributes:
        found: by canonical name.
        missing: pins without a usable wheel, with the versions that have one, as pip lists them.
    """

    found: dict[str, Metadata]
    missing: dict[str, str]


def ask(pins: PinSet, options: Sequence[str] = (), processes: int = PROCESSES) -> Answers:
    """Read the metadata of every pin that is not declared by hand.

    Args:
        options: for pip, e.g. ``("--no-index", "--find-links", folder)``.

    Raises:
        NoIndexError: the index does not answer.
        PinsError: pip failed in another way.
    """
    asked = [pin for name, pin in sorted(pins.pins.items()) if name not in pins.sources]
    with tempfile.TemporaryDirectory() as folder:
        pip = light_pip(Path(folder), options)
        command = [*pip, *platform_options(pins), *options]
        parts = [asked[start::processes] for start in range(processes) if asked[start::processes]]
        with ThreadPoolExecutor(processes) as pool:
            answers = list(pool.map(lambda part: ask_part(command, part, Path(folder)), parts))
    return Answers(
        {name: found for answer in answers for name, found in answer.found.items()},
        {name: others for answer in answers for name, others in answer.missing.items()},
    )


def light_pip(folder: Path, options: Sequence[str]) -> list[str]:
    """Return a pip that reads metadata without downloading wheels; brings one into ``folder`` if needed."""
    own = [sys.executable, "-m", "pip"]
    if "--no-index" in options:
        return [*own, "install"]
    version = run([*own, "--version"]).stdout.split()
    if len(version) > 1 and Version(version[1]) >= LIGHT_PIP_FROM:
        return [*own, "install", *PATIENCE, "--use-feature=fast-deps"]
    done = run([*own, "install", *PATIENCE, "--quiet", "--target", str(folder / "pip"), *options, LIGHT_PIP])
    if done.returncode:
        raise NoIndexError(f"cannot ask the package index: {last_error(done.stderr)}; is there a network?")
    return [sys.executable, str(folder / "pip" / "pip"), "install", *PATIENCE, "--use-feature=fast-deps"]


def platform_options(pins: PinSet) -> list[str]:
    """Return pip's options for the machine that the pins are for, not the one that this runs on."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(pins.glibc, 4, -1)] + list(OLD_PLATFORMS)
    python = f"{pins.python.major}.{pins.python.minor}"
    return [
        *("--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--implementation", "cp"),
        # Compared here instead, so that a wrong one is named rather than the version hidden.
        "--ignore-requires-python",
        *(
            "--python-version",
            python,
            "--abi",
            f"cp{python.replace('.', '')}",
            "--abi",
            "abi3",
            "--abi",
            "none",
        ),
        *(part for platform in platforms for part in ("--platform", platform)),
    ]


def ask_part(command: Sequence[str], pins: Sequence[Pin], folder: Path) -> Answers:
    """Ask for some pins; whatever has no wheel is taken out and the rest asked for again."""
    left, missing = {pin.name: pin for pin in pins}, dict[str, str]()
    while left:
        report = Path(tempfile.mkdtemp(dir=folder))
        target = ["--target", str(report / "target"), "--report", str(report / "report.json")]
        done = run([*command, *target, *(pin.text for pin in left.values())])
        if done.returncode == 0:
            with PARSING:
                return Answers(read_report(json.loads((report / "report.json").read_text())), missing)
        none = NO_MATCH.search(done.stderr)
        if any(sign in done.stderr for sign in UNREACHABLE):
            raise NoIndexError(
                f"cannot ask the package index: {last_error(done.stderr)}; is there a network?"
            )
        if none is None:
            raise PinsError(f"cannot ask the package index: {last_error(done.stderr)}")
        name: str = canonicalize_name(none["name"])
        others = OTHERS.search(done.stderr)
        missing[name] = others["versions"] if others else "none"
        del left[name]
    return Answers({}, missing)


def read_report(report: Mapping[str, Any]) -> dict[str, Metadata]:
    """Read what ``pip install --report`` wrote."""
    entries = (entry["metadata"] for entry in report["install"])
    return {canonicalize_name(entry["name"]): read_metadata(entry) for entry in entries}


def read_metadata(given: Mapping[str, Any]) -> Metadata:
    """Read one package's metadata as pip reports it."""
    return Metadata(
        SpecifierSet(given.get("requires_python", "")),
        tuple(map(Requirement, given.get("requires_dist", []))),
    )


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it says."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NoIndexError(f"cannot ask the package index: no answer within {TIMEOUT_S} s") from error


def last_error(text: str) -> str:
    """Return the line that says what went wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1]
