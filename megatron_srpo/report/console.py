"""Console progress: a live bar on a terminal, one plain line per step in logs (Slurm, CI)."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from megatron_srpo.report.metrics import Row

PHASES = ("generate", "reward", "score", "teacher", "update", "sync", "evaluate", "checkpoint")

_ETA_STEPS = 20


class Progress:
    """Shows a run on the console. Use as a context manager.

    Args:
        total_steps: the step at which the run ends.
        start_step: the step from which it goes on (0 for a new run).
        enabled: False on all ranks but the first; every call is then free and silent.
        console: where to print; by default the standard output.
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps, self.current_step, self.enabled = total_steps, start_step, enabled
        self._console = console or Console()
        self._clock = clock
        self._started = clock()
        self._marks = deque([(start_step, self._started)], maxlen=_ETA_STEPS + 1)
        self._phases: list[tuple[str, float]] = []
        self._last: Row = {}
        self._live: Live | None = None
        if enabled and self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, metrics: Row) -> None:
        """Show one finished step: ``metrics`` is its row of metrics.jsonl (missing metrics are left out)."""
        self._last = dict(metrics)
        self.current_step = int(metrics["step"] or 0)
        if self.current_step == self._marks[-1][0]:
            self._marks.pop()  # the evaluation before the first step is not part of any step's time
        self._marks.append((self.current_step, self._clock()))
        if not self.enabled:
            return
        self._print(step_line(metrics, self.total_steps, self.seconds_left(), phases=self._live is None))
        evaluation = evaluation_line(metrics)
        if evaluation is not None:
            self._print(evaluation)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show ``name`` as the current phase while the block runs; blocks may be nested."""
        self._phases.append((name, self._clock()))
        try:
            yield
        finally:
            self._phases.pop()

    def warn(self, text: str) -> None:
        """Print a warning in yellow."""
        self._print(Text(f"warning: {text}", style="yellow"))

    def message(self, text: str) -> None:
        """Print a line above the live bar; brackets in ``text`` are not markup."""
        self._print(Text(text))

    def seconds_left(self) -> float | None:
        """Estimate the seconds to the end from the last steps, evaluation included; None at first."""
        (first_step, first_time), (last_step, last_time) = self._marks[0], self._marks[-1]
        if last_step <= first_step:
            return None
        return (last_time - first_time) / (last_step - first_step) * max(self.total_steps - last_step, 0)

    def _print(self, text: Text) -> None:
        if self.enabled:
            # A log line must not be folded at 80 columns: people grep it.
            self._console.print(text, soft_wrap=True)

    def _render(self) -> Group:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=max(self.total_steps, 1), completed=self.current_step, width=30),
            f"{self.current_step}/{self.total_steps}",
            f"elapsed {duration(self._clock() - self._started)}",
            f"left {duration(self.seconds_left())}",
            Text(self._phase_text(), style="cyan"),
        )
        seconds = phase_seconds(self._last)
        return Group(bar, Text(f"last step: {seconds}", style="dim")) if seconds else Group(bar)

    def _phase_text(self) -> str:
        if not self._phases:
            return ""
        name, since = self._phases[-1]
        return f"{name} {self._clock() - since:.1f} s"


def counting_bar() -> Bar:
    """Return a bar on the standard error that counts; it shows nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console, disable=not console.is_terminal)


def step_line(metrics: Row, total_steps: int, seconds_left: float | None, *, phases: bool) -> Text:
    """Write one step as one line; with ``phases`` the seconds of every phase are appended."""
    parts = [Text(f"step {metrics['step']:>{len(str(total_steps))}}/{total_steps}", style="bold")]
    parts += [Text(part) for part in _step_parts(metrics)]
    if seconds_left is not None:
        parts.append(Text(f"left {duration(seconds_left)}", style="green"))
    if phases and phase_seconds(metrics):
        parts.append(Text(f"({phase_seconds(metrics)})", style="dim"))
    return Text("  ").join(parts)


def evaluation_line(metrics: Row) -> Text | None:
    """Write the evaluation of a step, or None when it was not evaluated."""
    accuracy = metrics.get("eval/accuracy")
    if accuracy is None:
        return None
    sets = {name.split("/")[1]: value for name, value in metrics.items() if _is_set_accuracy(name)}
    details = ", ".join(f"{name} {value:.3f}" for name, value in sorted(sets.items()) if value is not None)
    line = f"evaluation at step {metrics['step']}: accuracy {accuracy:.3f}"
    return Text(f"{line} ({details})" if details else line, style="bold cyan")


def phase_seconds(metrics: Row) -> str:
    """Write the seconds of every phase that took a visible time, e.g. ``generate 4.1 s, update 2.0 s``."""
    times = {phase: metrics.get(f"time/{phase}") for phase in PHASES}
    return ", ".join(f"{phase} {value:.1f} s" for phase, value in times.items() if value and value >= 0.05)


def duration(seconds: float | None) -> str:
    """Write seconds as ``m:ss`` or ``h:mm:ss``; ``--`` for None."""
    if seconds is None:
        return "--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _step_parts(metrics: Row) -> list[str]:
    """Return the parts of the line whose metrics are there."""
    formats = {
        "reward/accuracy": "accuracy {:.3f}",
        "routes": "policy/distill/dropped {}",
        "response/length_mean": "length {:.1f}",
        "response/truncated_share": "truncated {:.0%}",
        "optim/grad_norm": "grad {:.3g}",
        "time/step": "{:.1f} s",
    }
    values: dict[str, float | int | str | None] = {**metrics, "routes": _routes(metrics)}
    return [form.format(values[name]) for name, form in formats.items() if values.get(name) is not None]


def _routes(metrics: Row) -> str | None:
    shares = [metrics.get(f"route/{route}_share") for route in ("policy", "distill", "dropped")]
    if all(value is None for value in shares):
        return None
    return "/".join(f"{100 * (value or 0):.0f}" for value in shares) + " %"


def _is_set_accuracy(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/accuracy") and name.count("/") >= 2
