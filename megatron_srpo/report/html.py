"""report.html: one self-contained page about one run, readable without a network or a script."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_srpo.errors import DataError
from megatron_srpo.report.browser import rollouts_section
from megatron_srpo.report.budget import PAPER_HOURS, BudgetScore, best_within
from megatron_srpo.report.console import duration
from megatron_srpo.report.histograms import read_lengths
from megatron_srpo.report.length_charts import length_charts
from megatron_srpo.report.page import asset, chart_card, page, table, tiles, write_page
from megatron_srpo.report.plots import ACCURACY_CHARTS, CHARTS, Chart
from megatron_srpo.report.run_data import LENGTHS_FILE, SAMPLES_FILE, RunData, best, flatten, load_run
from megatron_srpo.report.text import visible
from megatron_srpo.report.watch import Warned

REPORT_FILE = "report.html"

# Label and the ends of dotted config keys that may hold the value; the first that exists is shown.
_SUMMARY_KEYS = (
    ("algorithm", ("algorithm.name",)),
    ("model", ("model.path",)),
    ("TP", ("parallel.tensor",)),
    ("PP", ("parallel.pipeline",)),
    ("VPP", ("parallel.virtual",)),
    ("EP", ("parallel.expert",)),
    ("learning rate", ("optimizer.learning_rate",)),
    ("prompts per step", ("prompts_per_step", "batch.prompts", "rollout.prompts")),
    ("rollouts per prompt", ("rollouts_per_prompt", "batch.rollouts", "rollout.rollouts")),
    ("response tokens", ("max_new_tokens", "max_response_tokens")),
    ("temperature", ("rollout.temperature", "sampling.temperature", "temperature")),
    ("seed", ("seed", "training.seed")),
)
# Metrics of a held-out set that the table shows of the last evaluation.
_AT_THE_END = ("accuracy_low", "accuracy_high", "pass_at_k", "maj_at_k", "truncated_share")
_ENDS = 5  # steps averaged at both ends of a run for the tiles


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Works while the run is still going on and with any metric missing: what is missing is said on the page.

    Raises:
        DataError: the folder does not exist or its metrics.jsonl is damaged in the middle.
    """
    run = load_run(run_dir)
    return write_page(run.path / REPORT_FILE, report_page(run))


def report_page(run: RunData) -> str:
    """Return the whole page about one run."""
    warned = run.warnings()
    parts = [
        f"<h1>{visible(run.name)}</h1>",
        f'<p class="sub">{visible(config_summary(run))}</p>',
        *(f'<div class="box warn">{visible(note)}</div>' for note in run.notes),
        _tiles(run, warned),
        _warnings_box(run, warned),
        _accuracy_section(run),
        _charts_section(run),
        _lengths_section(run),
        rollouts_section(run.path / SAMPLES_FILE, _success_threshold(run)),
        _config_section(run),
    ]
    return page(run.name, "".join(parts), asset("browser.js"))


def config_summary(run: RunData) -> str:
    """Return the few settings that a reader asks for first, on one line."""
    flat = flatten(run.config)
    found = [(label, _first_ending(flat, endings)) for label, endings in _SUMMARY_KEYS]
    return " · ".join(f"{label} {value}" for label, value in found if value is not None)


def _first_ending(flat: dict[str, Any], endings: Sequence[str]) -> Any:
    for ending in endings:
        for key, value in flat.items():
            if key == ending or key.endswith("." + ending):
                return value
    return None


def _tiles(run: RunData, warned: Sequence[Warned]) -> str:
    _, seconds = run.step_seconds()
    shown: list[tuple[str, str, str] | None] = [_evaluation_tile(run)]
    shown += [_ends_tile(run, "reward/accuracy", "Training accuracy", "{:.3f}")]
    shown += [_ends_tile(run, "route/distill_share", "Routed to distillation", "{:.0%}")]
    shown += [_ends_tile(run, "response/length_mean", "Response length", "{:.0f}")]
    if seconds:
        note = f"{sum(seconds) / len(seconds):.1f} s per step, without evaluation"
        shown.append(("Training time", duration(sum(seconds)), note))
    if run.rows:
        shown.append(("Step", str(run.rows[-1]["step"]), "the last one finished"))
        shown.append(("Warnings", str(len(warned)), "collapse watch"))
    return tiles(shown)


def _evaluation_tile(run: RunData) -> tuple[str, str, str] | None:
    steps, values = run.series("eval/accuracy")
    top = best(steps, values)
    if top is None:
        return None
    return "Evaluation accuracy", f"{values[0]:.3f} → {values[-1]:.3f}", f"best {top[1]:.3f} at step {top[0]}"


def _ends_tile(run: RunData, metric: str, label: str, form: str) -> tuple[str, str, str] | None:
    steps, values = run.series(metric)
    if not values:
        return None
    ends = [sum(part) / len(part) for part in (values[:_ENDS], values[-_ENDS:])]
    if len(values) < 2 * _ENDS:
        return label, form.format(values[-1]), f"at step {steps[-1]}"
    return label, " → ".join(form.format(end) for end in ends), f"mean of first and last {_ENDS} steps"


def _warnings_box(run: RunData, warned: Sequence[Warned]) -> str:
    if not run.rows:
        return ""
    if not warned:
        return '<div class="box">The collapse watch has nothing to report.</div>'
    items = "".join(f"<li><b>Step {warning.step}</b>: {visible(warning.text)}</li>" for warning in warned)
    heading = "Warnings of the collapse watch (training metrics are means over its window)"
    return f'<div class="box warn"><b>{heading}</b><ul>{items}</ul></div>'


def _accuracy_section(run: RunData) -> str:
    drawn = [chart for chart in ACCURACY_CHARTS if not chart.missing(run) and chart.clock.read(run)]
    cards = "".join(_card(chart, run) for chart in drawn)
    charts = f'<div class="charts">{cards}</div>' if cards else ""
    tables = f'<div class="tables">{_evaluation_table(run)}{_budget_table(run)}</div>'
    return f"<h2>Accuracy</h2>{charts}{tables}"


def _evaluation_table(run: RunData) -> str:
    steps, _ = run.series("eval/accuracy")
    if not steps:
        return '<p class="missing">Not evaluated yet (no eval/accuracy).</p>'
    names = {
        "mean of sets": "eval/",
        **{name: f"eval/{name}/" for name in run.names_between("eval/", "/accuracy")},
    }
    last = f"step {steps[-1]}"
    head = (
        "held-out set",
        f"step {steps[0]}",
        "best",
        "at step",
        last,
        "95 %",
        "pass@k",
        "maj@k",
        "truncated",
    )
    return table(head, [_evaluation_row(run, label, prefix) for label, prefix in names.items()])


def _budget_table(run: RunData) -> str:
    """The papers' score: the best held-out accuracy within so many hours of training."""
    scores = [best_within(run.rows, hours * 3600) for hours in PAPER_HOURS]
    if all(score.accuracy is None for score in scores):
        return ""
    head = ("best within", "accuracy", "at step", "after", "budget")
    return table(head, [_budget_row(score) for score in scores], numbers_from=1)


def _budget_row(score: BudgetScore) -> list[str]:
    hours = f"{score.seconds / 3600:g} h of training"
    used = "used up" if score.used_up else "not used up"
    if score.accuracy is None or score.at_seconds is None:
        return [hours, "-", "-", "-", used]
    return [hours, f"{score.accuracy:.3f}", str(score.step), duration(score.at_seconds), used]


def _evaluation_row(run: RunData, label: str, prefix: str) -> list[str]:
    steps, values = run.series(prefix + "accuracy")
    top = best(steps, values) or (0, 0.0)
    ends = {name: run.series(prefix + name)[1][-1:] for name in _AT_THE_END}
    low, high, *tail = [f"{end[0]:.3f}" if end else "-" for end in ends.values()]
    interval = f"{low} to {high}" if low != "-" else "-"
    return [label, f"{values[0]:.3f}", f"{top[1]:.3f}", str(top[0]), f"{values[-1]:.3f}", interval, *tail]


def _charts_section(run: RunData) -> str:
    cards = "".join(_card(chart, run) for chart in CHARTS if not chart.missing(run))
    missing = [f"{chart.title} ({', '.join(chart.metrics)})" for chart in CHARTS if chart.missing(run)]
    note = f'<p class="note missing">Not in this run: {visible("; ".join(missing))}.</p>' if missing else ""
    return f'<h2>Curves</h2><div class="charts">{cards}</div>{note}'


def _lengths_section(run: RunData) -> str:
    try:
        charts = length_charts(read_lengths(run.path / LENGTHS_FILE))
    except DataError as error:
        return f'<h2>Response lengths</h2><p class="missing">{visible(str(error))}</p>'
    cards = "".join(chart_card(*chart) for chart in charts)
    if not cards:
        return f'<p class="note missing">No length histograms ({LENGTHS_FILE} is missing or empty).</p>'
    return f'<h2>Response lengths</h2><div class="charts wide">{cards}</div>'


def _success_threshold(run: RunData) -> float:
    """The reward from which on the run counted a rollout as right; 1 where its config does not say."""
    value = flatten(run.config).get("algorithm.success_threshold")
    return float(value) if isinstance(value, int | float) else 1.0


def _card(chart: Chart, run: RunData) -> str:
    return chart_card(chart.title, chart.caption, chart.svg(run))


def _config_section(run: RunData) -> str:
    if not run.config:
        return ""
    rows = [(key, str(value)) for key, value in flatten(run.config).items()]
    inner = table(("key", "value"), rows, numbers_from=2)
    return f"<h2>Configuration</h2><details><summary>All {len(rows)} settings</summary>{inner}</details>"
