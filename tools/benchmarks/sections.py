"""Where time goes: exclusive wall and processor seconds per (phase, section), by wrapping functions.

Sections nest: while a wrapped function runs inside another, its time is taken from the outer one, so that the
table adds up to the whole. Wrapping costs about two microseconds per call.
"""

import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: The section of time inside a phase that no wrapped function accounts for.
REST = "(rest)"


@dataclass
class Seconds:
    """Wall and processor seconds (all threads of this process), and how often the section was entered."""

    wall: float = 0.0
    processor: float = 0.0
    calls: int = 0


class SectionTimer:
    """A stack of open sections; time always runs on the innermost one."""

    def __init__(
        self,
        wall: Callable[[], float] = time.perf_counter,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self.clocks = (wall, processor)
        self.stack: list[str] = []
        self.phase = ""
        self.since = (0.0, 0.0)
        self.table: dict[tuple[str, str], Seconds] = defaultdict(Seconds)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Account the body's time to ``name``; outside of every phase nothing is counted."""
        if not self.phase:
            yield
            return
        self._charge()
        self.stack.append(name)
        self.table[self.phase, name].calls += 1
        try:
            yield
        finally:
            self._charge()
            self.stack.pop()

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """Open a phase; sections inside it are counted under its name."""
        assert not self.phase, f"phase {name} inside phase {self.phase}"
        self.phase = name
        self.since = self._now()
        try:
            with self.section(REST):
                yield
        finally:
            self.phase = ""

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return ``function`` with its time accounted to the section ``name``."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.section(name):
                return function(*args, **kwargs)

        return timed

    def _now(self) -> tuple[float, float]:
        return self.clocks[0](), self.clocks[1]()

    def _charge(self) -> None:
        """Give the time since the last charge to the innermost open section."""
        now = self._now()
        if self.stack:
            seconds = self.table[self.phase, self.stack[-1]]
            seconds.wall += now[0] - self.since[0]
            seconds.processor += now[1] - self.since[1]
        self.since = now


def install(timer: SectionTimer, targets: Sequence[tuple[str, str]]) -> None:
    """Wrap functions in place: each target is ("package.module:Class.method" or ":function", section).

    A name imported with ``from ... import`` must be wrapped in the module that uses it. A target that does
    not exist is an error: a profile that silently misses a part would mislead.
    """
    for path, section in targets:
        module, _, dotted = path.partition(":")
        *owners, last = dotted.split(".")
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = owner.__dict__[part]
        setattr(owner, last, _wrapped(timer, owner.__dict__[last], section))


def _wrapped(timer: SectionTimer, found: Any, section: str) -> Any:
    if isinstance(found, staticmethod):
        return staticmethod(timer.wrap(found.__func__, section))
    return timer.wrap(found, section)
