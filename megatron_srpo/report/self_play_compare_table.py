"""The numbers of a comparison of self-plays: per label and iteration, mean and deviation over its seeds."""

import csv
import io
import statistics
from collections.abc import Iterator, Sequence

from megatron_srpo.report.curves import Groups
from megatron_srpo.report.run_data import RunData
from megatron_srpo.report.self_play_tables import COLUMNS

HEAD = ("label", "iteration", *(name for name, _, _ in COLUMNS))
NOTE = (
    "Mean ± sample standard deviation over the self-plays of a label; (n) where only n of them have a "
    "number. Iteration 0: before the first. Hidden pairs: of the sampled pairs of one skill, the share that "
    "is far in words."
)


def text_rows(groups: Groups) -> list[list[str]]:
    """Return the cells below ``HEAD``: a line per label and iteration."""
    return [
        [label, str(iteration), *(_cell(runs, iteration, metric, form) for _, metric, form in COLUMNS)]
        for label, runs in groups.items()
        for iteration in _iterations(runs)
    ]


def markdown_text(groups: Groups, title: str) -> str:
    """Return the table in Markdown."""
    lines = [f"# {title}", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in text_rows(groups)]
    return "\n".join([*lines, "", NOTE]) + "\n"


def csv_text(groups: Groups) -> str:
    """Return every number of every self-play, unrounded; empty where one does not exist."""
    names = sorted({name for runs in groups.values() for run in runs for name in run.metrics()} - {"step"})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["label", "self_play", "iteration", *names])
    for label, run in _pairs(groups):
        for row in run.rows:
            values = ["" if row.get(name) is None else row[name] for name in names]
            writer.writerow([label, run.name, row["step"], *values])
    return buffer.getvalue()


def _pairs(groups: Groups) -> Iterator[tuple[str, RunData]]:
    for label, runs in groups.items():
        for run in runs:
            yield label, run


def _iterations(runs: Sequence[RunData]) -> list[int]:
    return sorted({int(row["step"] or 0) for run in runs for row in run.rows})


def _cell(runs: Sequence[RunData], iteration: int, metric: str, form: str) -> str:
    series = [dict(zip(*run.series(metric), strict=True)) for run in runs]
    values = [own[iteration] for own in series if iteration in own]
    if not values:
        return "-"
    text = form.format(statistics.fmean(values))
    if len(values) > 1:
        text += f" ± {form.format(statistics.stdev(values))}"
    return text if len(values) == len(runs) else f"{text} ({len(values)})"
