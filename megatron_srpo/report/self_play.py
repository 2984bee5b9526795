"""report.html of a self-play: one self-contained page about all its iterations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_srpo.report.console import duration
from megatron_srpo.report.html import REPORT_FILE
from megatron_srpo.report.page import asset, chart_card, page, table, tiles, write_page
from megatron_srpo.report.plots import Chart
from megatron_srpo.report.run_data import RunData, best, flatten
from megatron_srpo.report.self_play_charts import DIVERSITY, LEARNING, PHASES, scatter_svg
from megatron_srpo.report.self_play_data import SelfPlayData, load_self_play
from megatron_srpo.report.self_play_nearest import nearest_section
from megatron_srpo.report.self_play_tables import heat_maps, iteration_table, links
from megatron_srpo.report.text import visible

_SUMMARY_KEYS = (
    ("Challenger", "challenger.model.path"),
    ("Solver", "solver.model.path"),
    ("uncertainty", "reward.uncertainty"),
    ("batch repetition", "reward.repetition"),
    ("memory penalty", "reward.memory"),
    ("replay", "replay"),
    ("coder", "skill.coder.kind"),
    ("coder model", "skill.coder.path"),
    ("embedder", "skill.embedder.kind"),
    ("embedding model", "skill.embedder.model"),
    ("questions", "pool.questions"),
    ("votes", "votes.samples"),
    ("seed", "seed"),
)
_ILLUSIONS = {"local": "Local Diversity Illusion", "surface": "Surface Diversity Illusion"}
_STATES = {
    "present": "present",
    "absent": "not seen",
    "steady": "no rise, but steady recurrence",
    "open": "cannot be told",
}


def write_self_play_page(folder: str | Path, notes: Sequence[str] = ()) -> Path:
    """Write ``report.html`` into the folder of a self-play and return its path.

    Args:
        notes: shown at the top, before those on what could not be read.

    Raises:
        DataError: the folder does not exist, or is not that of a self-play.
    """
    data = load_self_play(folder)
    return write_page(data.run.path / REPORT_FILE, self_play_page(data, notes))


def self_play_page(data: SelfPlayData, notes: Sequence[str] = ()) -> str:
    """Return the whole page about one self-play."""
    run = data.run
    parts = [
        f"<h1>{visible(run.name)}</h1>",
        f'<p class="sub">{visible(_summary(run))}</p>',
        *(f'<div class="box warn">{visible(note)}</div>' for note in (*notes, *run.notes)),
        _tiles(run),
        *(_verdict(verdict) for verdict in data.diversity.get("verdicts", ())),
        "<h2>Iterations</h2>",
        _charts(LEARNING, run),
        iteration_table(run),
        links(data),
        '<h2 id="diversity">Diversity of the valid questions</h2>',
        _measured(data.diversity),
        _charts(DIVERSITY, run),
        heat_maps(data.diversity),
        _scatter(data.diversity),
        nearest_section(data.nearest),
        _config_section(run),
    ]
    return page(run.name, "".join(parts), asset("self_play.js"))


def _summary(run: RunData) -> str:
    flat = flatten(run.config)
    found = [(label, flat.get(key)) for label, key in _SUMMARY_KEYS]
    return " · ".join(f"{label} {value}" for label, value in found if value is not None)


def _tiles(run: RunData) -> str:
    shown = [
        _accuracy_tile(run),
        _ends_tile(run, "labels/accuracy", "Pseudo-labels right", "{:.0%}"),
        _ends_tile(run, "pool/valid", "Valid questions", "{:.0%}"),
        _ends_tile(run, "recurrence/near", "Recur from earlier", "{:.0%}"),
        _ends_tile(run, "skill/clusters", "Skill clusters", "{:.0f}"),
        _ends_tile(run, "memory/size", "Memory", "{:,.0f}"),
        _time_tile(run),
    ]
    return tiles(shown)


def _accuracy_tile(run: RunData) -> tuple[str, str, str] | None:
    steps, values = run.series("heldout")
    top = best(steps, values)
    if top is None:
        return None
    where = f"after iteration {top[0]}" if top[0] else "before training"
    return "Held-out accuracy", f"{values[0]:.3f} → {values[-1]:.3f}", f"best {top[1]:.3f} {where}"


def _ends_tile(run: RunData, metric: str, label: str, form: str) -> tuple[str, str, str] | None:
    steps, values = run.series(metric)
    if not values:
        return None
    if len(values) == 1:
        return label, form.format(values[0]), f"iteration {steps[0]}"
    ends = f"{form.format(values[0])} → {form.format(values[-1])}"
    return label, ends, f"iterations {steps[0]} and {steps[-1]}"


def _time_tile(run: RunData) -> tuple[str, str, str] | None:
    seconds = sum(sum(run.series(f"time/{phase}")[1]) for phase in PHASES)
    iterations = sum(1 for row in run.rows if row["step"])
    return ("Time", duration(seconds), f"{iterations} iterations") if seconds else None


def _verdict(verdict: Mapping[str, Any]) -> str:
    name = _ILLUSIONS.get(verdict["illusion"], verdict["illusion"])
    state = _STATES.get(verdict["state"], verdict["state"])
    warn = " warn" if verdict["state"] in ("present", "steady") else ""
    return (
        f'<div class="box{warn}"><b>{visible(name)}: {visible(state)}.</b> {visible(verdict["text"])} '
        f"<small>Rule: {visible(verdict['rule'])}</small></div>"
    )


def _measured(diversity: Mapping[str, Any]) -> str:
    """Say what the numbers of the section mean, with the thresholds and samples that were used."""
    limits = diversity.get("limits")
    if not limits:
        return ""
    near, distance = limits["near"], limits["cluster_distance"]
    text = (
        f"A question recurs if an earlier one has cosine {near:g} or more. Clusters: average linkage, "
        f"distance {distance:g}, over at most {limits['clustered']:,} questions of an iteration, "
        f"{limits['together']:,} of all iterations together (clusters seen before, new clusters), and "
        f"{limits['compared']:,} of an iteration for whatever compares words; samples are spread evenly."
    )
    return f'<p class="note">{visible(text)}</p>'


def _charts(charts: Sequence[Chart], run: RunData) -> str:
    drawn = [chart for chart in charts if not chart.missing(run)]
    missing = [f"{chart.title} ({', '.join(chart.metrics)})" for chart in charts if chart.missing(run)]
    cards = "".join(chart_card(chart.title, chart.caption, chart.svg(run)) for chart in drawn)
    note = f'<p class="note missing">Not in this run: {visible("; ".join(missing))}.</p>' if missing else ""
    return f'<div class="charts">{cards}</div>{note}'


def _scatter(diversity: Mapping[str, Any]) -> str:
    svg = scatter_svg(diversity.get("pairs", ()), diversity.get("limits", {}).get("cluster_distance", 0.5))
    if svg is None:
        return ""
    caption = (
        "Sampled pairs of questions of one iteration. Lines: the clusters' threshold. Upper left: one skill "
        "in other words."
    )
    return f'<div class="charts one">{chart_card("Words against skill", caption, svg)}</div>'


def _config_section(run: RunData) -> str:
    if not run.config:
        return ""
    rows = [(key, str(value)) for key, value in flatten(run.config).items()]
    inner = table(("key", "value"), rows, numbers_from=2)
    return f"<h2>Configuration</h2><details><summary>All {len(rows)} settings</summary>{inner}</details>"
