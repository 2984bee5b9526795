"""How far counted work is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType

from megatron_srpo.report.console import counting_bar

#: Seconds between two lines.
_LINE_EVERY_S = 30.0


class Counter:
    """Use as a context manager.

    Args:
        what: is counted.
        say: shows a line where there is no terminal.
    """

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say, self._said = what, say, time.monotonic()
        self._bar = counting_bar()
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> "Counter":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def show(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` are done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if self._bar.disable and (done == total or now - self._said >= _LINE_EVERY_S):
            self._said = now
            self._say(f"{done} of {total} {self._what}")
