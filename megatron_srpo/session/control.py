"""What others may do to a run while it goes on: ask it to stop, or take its folder over."""

from pathlib import Path

import torch.distributed as dist

from megatron_srpo.errors import FenceError
from megatron_srpo.session.stop import STOP_SIGNALS, StopRequested, StopSignals
from megatron_srpo.training.exchange import largest_anywhere
from megatron_srpo.training.fence import Fence
from megatron_srpo.weights.agreement import on_first_rank

STOP_FILE = "stop"

#: What a rank has noticed, by the number that ranks exchange; the largest wins.
_NOTICED = (None, *(number.name for number in STOP_SIGNALS), f"file {STOP_FILE!r}")
_LOST = len(_NOTICED)


class Control:
    """Asked by all ranks together, a few times per step.

    Args:
        signals: this rank's.
        stop_folders: further folders, besides the run's own, whose stop file counts.
    """

    def __init__(self, fence: Fence, signals: StopSignals, stop_folders: tuple[Path, ...] = ()) -> None:
        self.fence, self._signals = fence, signals
        self._folders = (fence.run_folder, *stop_folders)

    def poll(self) -> str | None:
        """Return why the run shall stop, the same on all ranks; None to go on. A collective over the job.

        Raises:
            FenceError: on all ranks, another process has taken the run folder over.
        """
        lost: FenceError | None = None
        noticed = _NOTICED.index(self._signals.asked)
        if dist.get_rank() == 0:
            try:
                self.fence.check()
            except FenceError as error:
                lost, noticed = error, _LOST
            else:
                noticed = max(noticed, self._stop_file())
        agreed = largest_anywhere(noticed)
        if agreed == _LOST:
            on_first_rank(lambda: _raise(lost))
        return _NOTICED[agreed]

    def pending(self) -> bool:
        """Say whether this rank knows of a reason to stop; the others may not know yet. No collective."""
        return self._signals.asked is not None or self._stop_file() > 0 or not self.fence.held()

    def heed(self) -> None:
        """Leave the step if the run shall stop. A collective over the job.

        Raises:
            StopRequested: on all ranks.
            FenceError: see :meth:`poll`.
        """
        reason = self.poll()
        if reason:
            raise StopRequested(reason)

    def _stop_file(self) -> int:
        return _LOST - 1 if any(stop_file(folder).exists() for folder in self._folders) else 0


def stop_file(run_folder: Path) -> Path:
    """Return the file whose existence asks the run to stop."""
    return run_folder / STOP_FILE


def _raise(error: FenceError | None) -> None:
    assert error is not None
    raise error
