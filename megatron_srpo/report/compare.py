"""Several runs side by side: one figure, one table (Markdown and CSV) and one page.

Runs are grouped by label (usually the algorithm); within a label they differ by seed. Curves are means over
the seeds of a label, with a band from the lowest to the highest seed. Training seconds leave out evaluation
and checkpoints, as in the papers (docs/algorithms.md section 9).
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_srpo.errors import DataError
from megatron_srpo.report.console import PHASES
from megatron_srpo.report.html import page
from megatron_srpo.report.html import table as html_table
from megatron_srpo.report.run_data import RunData, best, load_run, training_seconds
from megatron_srpo.report.style import cycle, inline_svg, light, rc_params, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[RunData]]
Curve = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One line of the comparison: a run, or the mean or standard deviation over the runs of a label.

    Accuracies are those of ``eval/accuracy``; None where a run was never evaluated. ``seconds`` are training
    seconds, ``seconds_per_step`` their mean. ``steps`` is the last step.
    """

    label: str
    run: str
    before: float | None
    best: float | None
    best_step: float | None
    last: float | None
    steps: float | None
    seconds: float | None
    seconds_per_step: float | None


_NUMBERS = tuple(field.name for field in fields(Summary))[2:]
_HEAD = ("algorithm", "run", "before", "best", "at step", "last", "steps", "seconds", "s/step")
_FORMS = ("{:.3f}", "{:.3f}", "{:.0f}", "{:.3f}", "{:.0f}", "{:.1f}", "{:.2f}")


def write_comparison(
    runs: Mapping[str, Sequence[str | Path]], out_dir: str | Path, *, title: str = "Comparison"
) -> dict[str, Path]:
    """Write figure, tables and page that compare runs.

    Args:
        runs: label to run folders (one per seed).
        out_dir: folder for the results; created if needed.
        title: heading of page and table.

    Returns:
        The paths by kind: ``png``, ``svg``, ``markdown``, ``csv``, ``html``.

    Raises:
        DataError: no run, a folder that does not exist, or one without metrics.
    """
    groups = {label: [_loaded(folder) for folder in folders] for label, folders in runs.items() if folders}
    if not groups:
        raise DataError("there is no run to compare; give at least one run folder")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    names = {"png": "compare.png", "svg": "compare.svg", "markdown": "compare.md", "csv": "compare.csv"}
    paths = {kind: out / name for kind, name in {**names, "html": "compare.html"}.items()}
    svg = _write_figure(groups, paths["svg"], paths["png"])
    summaries = summarize(groups)
    paths["markdown"].write_text(markdown_table(summaries, title), encoding="utf-8")
    paths["csv"].write_text(csv_table(summaries), encoding="utf-8")
    paths["html"].write_text(comparison_page(summaries, svg, title), encoding="utf-8")
    return paths


def summarize(groups: Groups) -> list[Summary]:
    """Return a summary per run and, below the runs of each label, their mean and standard deviation."""
    lines: list[Summary] = []
    for label, runs in groups.items():
        own = [summarize_run(label, run) for run in runs]
        lines += own
        lines.append(_over_seeds(label, "mean", own, _mean))
        lines.append(_over_seeds(label, "sd", own, _standard_deviation))
    return lines


def summarize_run(label: str, run: RunData) -> Summary:
    """Return the summary of one run."""
    steps, values = run.series("eval/accuracy")
    top = best(steps, values)
    _, seconds = run.step_seconds()
    return Summary(
        label=label,
        run=run_label(run),
        # "Before" is before any training: a run whose first evaluation came later has none.
        before=values[0] if values and steps[0] == 0 else None,
        best=top[1] if top else None,
        best_step=top[0] if top else None,
        last=values[-1] if values else None,
        steps=int(run.rows[-1]["step"] or 0),
        seconds=sum(seconds) if seconds else None,
        seconds_per_step=sum(seconds) / len(seconds) if seconds else None,
    )


def run_label(run: RunData) -> str:
    """Return ``seed N`` if the run's config names a seed, else the name of its folder."""
    seed = run.config.get("seed")
    return f"seed {seed}" if isinstance(seed, int) else run.name


def markdown_table(summaries: Sequence[Summary], title: str) -> str:
    """Return the table in Markdown; the mean line of a label reads ``mean ± sd``."""
    lines = [f"# {title}", "", f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in _text_rows(summaries)]
    lines += [
        "",
        "Accuracy: mean over the evaluation sets. Seconds: training only. ± sample standard deviation.",
    ]
    return "\n".join(lines) + "\n"


def csv_table(summaries: Sequence[Summary]) -> str:
    """Return all summaries as CSV with unrounded numbers; empty where a number does not exist."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([field.name for field in fields(Summary)])
    for line in summaries:
        writer.writerow(["" if value is None else value for value in asdict(line).values()])
    return buffer.getvalue()


def comparison_page(summaries: Sequence[Summary], svg: str, title: str) -> str:
    """Return the page with figure and table."""
    note = "Lines: mean over the runs of a label. Bands: from the lowest to the highest run."
    body = (
        f'<h1>{escape(title)}</h1><p class="sub">{note} Seconds are training seconds: without evaluation and '
        f'checkpoints.</p><div class="figure">{inline_svg(svg, "compare")}</div><h2>Runs</h2>'
        f"{html_table(_HEAD, _text_rows(summaries), numbers_from=2, strong='mean')}"
    )
    return page(title, body)


def mean_curve(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return steps, mean, lowest and highest over the curves, at the steps that all of them have.

    Curves without any value are left out. A mean over ever fewer seeds would jump where a run ends early.
    """
    filled = [curve for curve in curves if curve]
    if not filled:
        return [], [], [], []
    steps = sorted(set.intersection(*(set(curve) for curve in filled)))
    columns = [[curve[step] for curve in filled] for step in steps]
    return steps, [sum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


def seconds_until(run: RunData) -> Curve:
    """Return the training seconds from the start until the end of each step."""
    steps = [int(row["step"] or 0) for row in run.rows]
    return dict(zip(steps, accumulate(training_seconds(row) for row in run.rows), strict=True))


def metric_curve(run: RunData, metric: str) -> Curve:
    """Return a metric as step to value; ``time/step`` only where a step trained."""
    return dict(zip(*(run.step_seconds() if metric == "time/step" else run.series(metric)), strict=True))


def _loaded(folder: str | Path) -> RunData:
    run = load_run(folder)
    if not run.rows:
        raise DataError(
            f"{folder} holds no metrics.jsonl with a finished step; leave it out or train it first"
        )
    return run


def _over_seeds(
    label: str, name: str, lines: Sequence[Summary], reduce: Callable[[list[float]], float | None]
) -> Summary:
    values: dict[str, Any] = {}
    for number in _NUMBERS:
        column = [asdict(line)[number] for line in lines]
        values[number] = reduce([value for value in column if value is not None])
    return Summary(label=label, run=name, **values)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _standard_deviation(values: list[float]) -> float | None:
    """Sample standard deviation (n - 1); a single run has none."""
    if len(values) < 2:
        return None
    centre = sum(values) / len(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def _text_rows(summaries: Sequence[Summary]) -> list[list[str]]:
    deviations = {line.label: line for line in summaries if line.run == "sd"}
    return [_text_row(line, deviations[line.label]) for line in summaries if line.run != "sd"]


def _text_row(line: Summary, deviation: Summary) -> list[str]:
    cells = [line.label, line.run]
    for name, form in zip(_NUMBERS, _FORMS, strict=True):
        value, spread = asdict(line)[name], asdict(deviation)[name]
        text = "-" if value is None else form.format(value)
        cells.append(f"{text} ± {form.format(spread)}" if line.run == "mean" and spread is not None else text)
    return cells


def _write_figure(groups: Groups, svg_path: Path, png_path: Path) -> str:
    """Draw once, write both files and return the SVG text."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(rc_params("compare")):
        figure = Figure(figsize=(12, 7), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
        draw_comparison(figure, groups)
        svg = svg_text(figure)
        figure.savefig(png_path, dpi=130, facecolor="white", metadata={"Software": None})
    svg_path.write_text(svg, encoding="utf-8")
    return svg


def draw_comparison(figure: "Figure", groups: Groups) -> None:
    """Draw the six panels of the comparison."""
    panels = figure.subplots(2, 3).flat
    _panel(panels[0], groups, "eval/accuracy", "Evaluation accuracy")
    _time_panel(panels[1], groups)
    _panel(panels[2], groups, "reward/accuracy", "Training accuracy")
    _panel(panels[3], groups, "response/length_mean", "Response length (tokens)")
    _panel(panels[4], groups, "time/step", "Seconds per step")
    panels[4].set_ylim(bottom=0)
    _phase_panel(panels[5], groups)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), fontsize=10)


def _panel(axes: "Axes", groups: Groups, metric: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step")
    for index, (label, runs) in enumerate(groups.items()):
        steps, mean, low, high = mean_curve([metric_curve(run, metric) for run in runs])
        _draw_mean(axes, steps, mean, low, high, _legend(label, runs), cycle(index))


def _time_panel(axes: "Axes", groups: Groups) -> None:
    axes.set_title("Evaluation accuracy by time")
    axes.set_xlabel("training seconds")
    for index, (label, runs) in enumerate(groups.items()):
        steps, mean, low, high = mean_curve([metric_curve(run, "eval/accuracy") for run in runs])
        evaluated = [run for run in runs if run.series("eval/accuracy")[0]]
        clocks = [seconds_until(run) for run in evaluated]
        seconds = [sum(clock[step] for clock in clocks) / len(clocks) for step in steps]
        _draw_mean(axes, seconds, mean, low, high, _legend(label, runs), cycle(index))


def _draw_mean(
    axes: "Axes",
    x: Sequence[float],
    mean: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    label: str,
    colour: str,
) -> None:
    marker = "o" if len(x) <= 25 else ""
    axes.plot(x, mean, color=colour, label=label, marker=marker, markersize=3.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _phase_panel(axes: "Axes", groups: Groups) -> None:
    """Mean seconds per step of every phase as stacked bars, one bar per label."""
    axes.set_title("Where the seconds of a step go")
    bottom = [0.0] * len(groups)
    for index, phase in enumerate(PHASES):
        heights = [_phase_mean(runs, phase) for runs in groups.values()]
        if any(heights):
            axes.barh(
                list(groups), heights, left=bottom, height=0.55, color=_phase_colour(index), label=phase
            )
        bottom = [start + height for start, height in zip(bottom, heights, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds per training step")
    if any(bottom):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4)


def _phase_mean(runs: Sequence[RunData], phase: str) -> float:
    """Seconds of a phase divided by training steps, so that rare evaluations count with their share."""
    rows = [row for run in runs for row in run.rows if training_seconds(row)]
    return sum(float(row.get(f"time/{phase}") or 0.0) for row in rows) / len(rows) if rows else 0.0


def _phase_colour(index: int) -> str:
    return cycle(index) if index < 7 else light("grey")


def _legend(label: str, runs: Sequence[RunData]) -> str:
    return f"{label} ({len(runs)} runs)" if len(runs) > 1 else label
