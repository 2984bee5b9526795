"""Signals that ask a run to stop: remembered here, heeded where a step can be left without loss.

Needs no torch, so that signals are remembered before it is loaded.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

#: Exit status of a rank whose run was stopped on request and can be continued.
STOPPED_STATUS = os.EX_TEMPFAIL

#: Slurm sends SIGUSR1 before the time limit (``--signal=USR1@300``) and SIGTERM before it takes nodes away.
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequested(Exception):
    """The run shall stop; raised on all ranks alike, where nothing has changed since the last finished step.

    Attributes:
        reason: what asked for it, e.g. ``SIGUSR1``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"stopped on request ({reason})")
        self.reason = reason


class StopSignals:
    """While the block runs, SIGUSR1 and SIGTERM do no more than to be remembered.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.

    Attributes:
        asked: name of the first such signal; None before.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not installed by Python and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signal.Signals(number).name
