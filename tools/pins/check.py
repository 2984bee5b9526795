"""Do the pins meet one another's requirements?"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.pins.files import Override, Pin, PinSet, base_image
from tools.pins.index import Answers

Kind = Literal["version", "unpinned", "python", "no wheel", "base image", "override"]
#: The distribution whose version is that of the CUDA toolkit which torch brings and was built with.
TOOLKIT = "cuda-toolkit"
#: Python of an Ubuntu release, which the image uses.
UBUNTU_PYTHON = {"22.04": "3.10", "24.04": "3.12", "26.04": "3.14"}
UBUNTU_GLIBC = {"22.04": 35, "24.04": 39, "26.04": 43}


@dataclass(frozen=True)
class Need:
    """One requirement that counts on the target machine.

    Attributes:
        by: who asks: ``name version``, or the project.
        of: canonical name of who asks; empty for the project.
        why: the project's reason; empty for packages.
    """

    by: str
    of: str
    requirement: Requirement
    why: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that would break the installation, or the override that allows it.

    Attributes:
        allowed: why it is left as it is; empty for a conflict.
    """

    kind: Kind
    text: str
    remedy: str
    allowed: str = ""


@dataclass(frozen=True)
class Result:
    """All requirements that were looked at, and what was found."""

    needs: tuple[Need, ...]
    findings: tuple[Finding, ...]

    @property
    def conflicts(self) -> list[Finding]:
        """What is not allowed by an override."""
        return [finding for finding in self.findings if not finding.allowed]


def check(pins: PinSet, answers: Answers) -> Result:
    """Compare every requirement of the project and of every pin with the pins."""
    needs = tuple(collect(pins, answers))
    used: set[tuple[str, str]] = set()
    findings = [*check_wheels(pins, answers), *check_base_image(pins)]
    for need in needs:
        found = check_need(need, pins.pins)
        if found is not None:
            findings.append(apply(found, need, pins.overrides, used))
    return Result(needs, (*findings, *check_overrides(pins.overrides, used)))


def collect(pins: PinSet, answers: Answers) -> list[Need]:
    """Return every requirement that counts: its marker holds there, and its extra is asked for by someone."""
    declared = {name: found.requires for name, found in answers.found.items()}
    declared |= {name: source.requires for name, source in pins.sources.items() if name in pins.pins}
    extras: dict[str, set[str]] = {}
    while True:
        needs = list(active(pins, declared, extras))
        asked: dict[str, set[str]] = defaultdict(set)
        for need in needs:
            asked[canonicalize_name(need.requirement.name)] |= need.requirement.extras
        # An extra may ask for extras of others; each round can only add some.
        if asked == extras:
            return needs
        extras = asked


def active(
    pins: PinSet, declared: Mapping[str, tuple[Requirement, ...]], extras: Mapping[str, set[str]]
) -> Iterator[Need]:
    """Yield the requirements that hold while these extras of each package are asked for."""
    for wanted, why in pins.wanted:
        if holds(wanted, pins, set()):
            yield Need("this project", "", wanted, why)
    for name, requires in sorted(declared.items()):
        for requirement in requires:
            if holds(requirement, pins, extras.get(name, set())):
                yield Need(label(pins.pins[name]), name, requirement)


def holds(requirement: Requirement, pins: PinSet, extras: set[str]) -> bool:
    """Say whether a requirement's marker is true on the target machine, for any of the asked extras."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate(environment(pins, extra)) for extra in ("", *extras))


def environment(pins: PinSet, extra: str) -> dict[str, str]:
    """Return what markers are compared with: Linux on x86-64."""
    return {
        "python_version": f"{pins.python.major}.{pins.python.minor}",
        "python_full_version": str(pins.python),
        "implementation_version": str(pins.python),
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_release": "",
        "platform_version": "",
        "extra": extra,
    }


def check_need(need: Need, pins: Mapping[str, Pin]) -> Finding | None:
    """Compare one requirement with the pin of that name."""
    wanted, pin = need.requirement, pins.get(canonicalize_name(need.requirement.name))
    reason = f" ({need.why})" if need.why else ""
    asks = f"{need.by} needs {bare(wanted)}{reason}"
    if pin is None:
        return Finding("unpinned", f"{asks}, which is not pinned", f"add a pin of {bare(wanted)}")
    if pin.version is None or wanted.specifier.contains(pin.version, prereleases=True):
        return None
    other = f", or another {need.of} that accepts {pin.version}" if need.of else ""
    return Finding("version", f"{asks}, but {pin.text} is pinned", f"pin {bare(wanted)}{other}")


def apply(found: Finding, need: Need, overrides: tuple[Override, ...], used: set[tuple[str, str]]) -> Finding:
    """Mark a finding as allowed where an override names it."""
    name = canonicalize_name(need.requirement.name)
    for override in overrides:
        if override.of == need.of and name in override.needs:
            used.add((override.of, name))
            return Finding(found.kind, found.text, found.remedy, override.why)
    return found


def check_overrides(overrides: tuple[Override, ...], used: set[tuple[str, str]]) -> Iterator[Finding]:
    """An override that nothing needs hides the next real conflict of that name."""
    for override in overrides:
        for name in sorted(override.needs):
            if (override.of, name) not in used:
                text = (
                    f"the override of {override.of} for {name} is not needed: that requirement is met or gone"
                )
                yield Finding("override", text, "remove it from pins.toml")


def check_wheels(pins: PinSet, answers: Answers) -> Iterator[Finding]:
    """Every pin has a wheel for the target and accepts its Python."""
    python = f"{pins.python.major}.{pins.python.minor}"
    for name, others in sorted(answers.missing.items()):
        text = f"{pins.pins[name].text} has no wheel for CPython {python}, Linux x86-64, glibc 2.{pins.glibc}"
        remedy = f"pin a version that has one ({others}), or declare it as built from source in pins.toml"
        yield Finding("no wheel", text, remedy)
    for name, found in sorted(answers.found.items()):
        if not found.requires_python.contains(pins.python, prereleases=True):
            text = f"{label(pins.pins[name])} needs Python {found.requires_python}, but this is {pins.python}"
            yield Finding("python", text, f"pin another version of {name}, or use another Python")


def check_base_image(pins: PinSet) -> Iterator[Finding]:
    """The image compiles with the toolkit that torch was built with, and has the Python of the pins."""
    if pins.dockerfile is None:
        return
    cuda, ubuntu = base_image(pins.dockerfile)
    toolkit = pins.pins.get(TOOLKIT)
    python, glibc = UBUNTU_PYTHON.get(ubuntu, "?"), UBUNTU_GLIBC.get(ubuntu, 0)
    if toolkit is not None and toolkit.version is not None and two(toolkit.version) != two(cuda):
        text = f"the base image has CUDA {cuda}, but torch was built with {toolkit.version}"
        yield Finding(
            "base image", f"{text}; apex refuses to compile", f"use a base image of {two(toolkit.version)}"
        )
    if python != two(pins.python):
        text = f"the base image (Ubuntu {ubuntu}) has Python {python}, but the pins are for {pins.python}"
        yield Finding("base image", text, "change the base image, or the Python of pins.toml")
    if glibc < pins.glibc:
        text = (
            f"the base image (Ubuntu {ubuntu}) has glibc 2.{glibc}, but wheels up to 2.{pins.glibc} are taken"
        )
        yield Finding("base image", text, f'set glibc = "2.{glibc}" in pins.toml')


def label(pin: Pin) -> str:
    """Name a pin in a sentence."""
    return f"{pin.name} {pin.version}" if pin.version is not None else pin.name


def bare(requirement: Requirement) -> str:
    """Write a requirement without its marker."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def two(version: Version) -> str:
    """Return the first two numbers of a version."""
    return f"{version.major}.{version.minor}"
