"""Everything that a run shows and writes, on the first rank; on the others, signs of life alone."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from megatron_srpo import platform
from megatron_srpo.config.loader import to_tree, to_yaml
from megatron_srpo.config.run import RunConfig
from megatron_srpo.report.console import Progress
from megatron_srpo.report.histograms import LengthCounts, LengthsFile
from megatron_srpo.report.html import write_report
from megatron_srpo.report.metrics import MetricsFile, read_metrics
from megatron_srpo.report.records import write_whole
from megatron_srpo.report.run_data import LENGTHS_FILE, SAMPLES_FILE
from megatron_srpo.report.samples import RolloutSample, SamplesFile
from megatron_srpo.report.tracker import Tracker
from megatron_srpo.report.watch import Watch
from megatron_srpo.session.heartbeat import heartbeat

# Phases that count as training; evaluation and saving do not (papers score by training time).
TRAINING_PHASES = ("generate", "reward", "score", "teacher", "update", "sync")


class Recorder:
    """Metrics, samples, console, wandb, warnings and the report page of one run.

    Args:
        start_step: steps already done (the checkpoint's); later rows of an interrupted run are dropped.
        active: True on the first rank only.
    """

    def __init__(self, config: RunConfig, start_step: int, active: bool) -> None:
        self.config = config
        self.active = active
        self.folder = Path(config.output_dir)
        self.seconds: dict[str, float] = defaultdict(float)
        self.progress = Progress(config.training.steps, start_step, enabled=active)
        self._heartbeat = heartbeat()
        if active:
            self._open(start_step)

    def _open(self, start_step: int) -> None:
        resumed = start_step > 0
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")
        self.samples = SamplesFile(self.folder / SAMPLES_FILE)
        self.lengths = LengthsFile(self.folder / LENGTHS_FILE)
        # Step 0 holds the first evaluation, which a resumed run does not repeat.
        self.metrics.rewind(start_step if resumed else -1)
        self.samples.rewind(start_step)
        self.lengths.rewind(start_step)
        self._write_config()
        self.watch = Watch(self.config.report.watch, read_metrics(self.folder / "metrics.jsonl"))
        # wandb's own process would die of the signal before a job's time limit, with what it has not sent.
        with platform.deaf_children():
            self.tracker = Tracker(
                self.config.report.wandb, self.folder, to_tree(self.config), resumed, self.progress.warn
            )

    def _write_config(self) -> None:
        """Replace the file whole: a run that was killed while writing it could not be resumed."""
        write_whole(self.folder / "config.yaml", [to_yaml(self.config)])

    def __enter__(self) -> "Recorder":
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        self._heartbeat.close()
        if self.active:
            self.tracker.finish(failed=error is not None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase and add its seconds to the step's row; its end is a sign of life."""
        platform.synchronize()
        started = time.perf_counter()
        with self.progress.phase(name):
            yield
            platform.synchronize()
        self.seconds[name] += time.perf_counter() - started
        self._heartbeat.beat()

    def training_seconds(self) -> float:
        """Return the seconds of training since the last row."""
        return sum(self.seconds.get(name, 0.0) for name in TRAINING_PHASES)

    def ending(self) -> str | None:
        """Return why the run shall end early by what its metrics show; None on other ranks."""
        return self.watch.ending() if self.active else None

    def phase_row(self) -> dict[str, float]:
        """Return the seconds per phase since the last row, and start counting anew."""
        row = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        row["time/step"] = self.training_seconds()
        self.seconds.clear()
        return row

    def write(
        self, row: dict[str, float], samples: Sequence[RolloutSample], lengths: LengthCounts | None = None
    ) -> None:
        """Finish a step: warn where it looks like a collapse, write its row, samples and response lengths."""
        if not self.active:
            return
        warned = self.watch.update(row)
        row = {**row, "warnings/count": len(warned)}
        if self.config.report.watch.stop_on:
            row["warnings/held_steps"] = self.watch.held_steps
        self.samples.append(samples)
        if lengths is not None:
            self.lengths.append(int(row["step"]), lengths)
        self.metrics.append(row)
        self.progress.step(row)
        for warning in warned:
            self.progress.warn(warning.text)
        self.tracker.log(row)
        every = self.config.report.report_every
        if every and int(row["step"]) % every == 0:
            write_report(self.folder)

    def finish(self) -> None:
        """Write the report page and say where it is."""
        if self.active:
            path = write_report(self.folder)
            self.progress.message(f"report: {path}")
