"""Check that pinned versions meet one another's requirements, without building or installing anything.

    python tools/check_pins.py gpu-py312

Reads what each pinned version declares from the package index that pip is configured for: a few kilobytes
each, a minute or two for a set. Left out: whether what is declared is true, and whether anything compiles or
runs.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from megatron_srpo.errors import UserError
from tools.pins.check import Finding, Result, bare, check
from tools.pins.files import PinsError, PinSet, read_sets
from tools.pins.index import ask

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints"

DESCRIPTION = """\
Check the pins of constraints/*.txt: every requirement that a pinned package or this project declares is met
by another pin, every pin has a wheel for that Python and Linux on x86-64 (or is declared as built from
source), and the Dockerfile's base image fits. What is overridden on purpose (constraints/pins.toml) is listed
with its reason.
Exit status: 0 good, 1 conflicts, 2 the files cannot be read or the package index cannot be asked.
"""

EXAMPLES = """\
examples:
  python tools/check_pins.py                        # all sets
  python tools/check_pins.py gpu-py312              # the container's
  python tools/check_pins.py gpu-py312 --why torch  # who asks for which torch
  python tools/check_pins.py gpu-py312 --pip=--index-url=https://pypi.example.com/simple
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse(arguments)
    try:
        sets = chosen(read_sets(options.constraints), options.sets)
        conflicts = 0
        for pins in sets:
            result = check(pins, ask(pins, options.pip))
            lines = explain(result, options.why) if options.why else describe(pins, result)
            print("\n".join(lines), flush=True)
            conflicts += len(result.conflicts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(conflicts > 0)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help="e.g. gpu-py312; all sets if none is named")
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS, help="folder with pins.toml")
    parser.add_argument("--why", metavar="PACKAGE", help="only print who asks for which version of it")
    parser.add_argument(
        "--pip", action="append", default=[], metavar="OPTION", help="option for pip; repeatable"
    )
    return parser.parse_args(arguments)


def chosen(sets: Sequence[PinSet], names: Sequence[str]) -> list[PinSet]:
    """Return the named sets, or all."""
    unknown = set(names) - {pins.name for pins in sets}
    if unknown:
        known = ", ".join(pins.name for pins in sets)
        raise PinsError(f"no set {', '.join(sorted(unknown))} in pins.toml; there are {known}")
    return [pins for pins in sets if not names or pins.name in names]


def describe(pins: PinSet, result: Result) -> Iterator[str]:
    """Yield the lines to print: conflicts with their remedies, overrides by their reason, a count."""
    yield f"{pins.name}: {len(pins.pins)} pins for Python {pins.python}, Linux x86-64, glibc 2.{pins.glibc}"
    for finding in result.conflicts:
        yield f"  CONFLICT ({finding.kind}) {finding.text}"
        yield f"    -> {finding.remedy}"
    allowed = [finding for finding in result.findings if finding.allowed]
    for reason in dict.fromkeys(finding.allowed for finding in allowed):
        yield f"  overridden: {reason}"
        yield from (f"    {finding.text}" for finding in allowed if finding.allowed == reason)
    for name in sorted(pins.sources.keys() & pins.pins.keys()):
        yield f"  not asked: {pins.pins[name].text}: its requirements are from {pins.sources[name].where}"
    found = f"{count(result.conflicts)}, {len(allowed)} overridden"
    yield f"{pins.name}: {len(result.needs)} requirements, {found}"


def count(conflicts: Sequence[Finding]) -> str:
    """Count conflicts by kind."""
    kinds = Counter(finding.kind for finding in conflicts)
    detail = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    return f"{len(conflicts)} conflicts ({detail})" if conflicts else "0 conflicts"


def explain(result: Result, name: str) -> Iterator[str]:
    """Yield who asks for a package, and with which bounds."""
    for need in result.needs:
        if canonicalize_name(need.requirement.name) == canonicalize_name(name):
            yield f"{need.by}: {bare(need.requirement)}{f'  ({need.why})' if need.why else ''}"


if __name__ == "__main__":
    sys.exit(main())
