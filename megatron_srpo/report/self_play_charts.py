"""The charts of a self-play: numbers against iterations, and pairs of questions by words and by skill."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_srpo.report.clocks import Clock, steps_of
from megatron_srpo.report.drawing import draw_line, draw_stack, step_axis
from megatron_srpo.report.plots import Chart, lines
from megatron_srpo.report.run_data import RunData, best
from megatron_srpo.report.style import cycle, inline_svg, light, rc_params, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("challenger", "questions", "votes", "memory", "solver")
_PENALTIES = (("repetition", "orange"), ("memory", "purple"))
_PANELS = 5  # of the scatter: of more iterations, some spread evenly


def iteration_axis(axes: "Axes") -> None:
    """Label an axis of iterations."""
    step_axis(axes)
    axes.set_xlabel("iteration")


ITERATIONS = Clock("iterations", "iterations", steps_of, iteration_axis)


def _accuracy(axes: "Axes", run: RunData) -> None:
    for index, name in enumerate(run_sets(run)):
        draw_line(axes, run, f"heldout/{name}", name, cycle(index + 1), width=1.1)
    draw_line(axes, run, "heldout", "mean of sets", light("blue"), width=2.2)
    steps, values = run.series("heldout")
    top = best(steps, values)
    for step, value in sorted({(steps[0], values[0]), top, (steps[-1], values[-1])}) if top else ():
        axes.annotate(
            f"{value:.2f}", (step, value), (0, 5), textcoords="offset points", ha="center", fontsize=8
        )
    axes.margins(x=0.06, y=0.12)


def run_sets(run: RunData) -> list[str]:
    """Return the names of the held-out sets."""
    return [name.removeprefix("heldout/") for name in run.metrics() if name.startswith("heldout/")]


def _reward(axes: "Axes", run: RunData) -> None:
    """Uncertainty upward, penalties downward from 0; the line is what remains."""
    rows = [row for row in run.rows if row.get("challenger/reward") is not None]
    steps = [int(row["step"] or 0) for row in rows]
    up = [float(row.get("challenger/uncertainty") or 0.0) for row in rows]
    axes.bar(steps, up, 0.6, color=light("teal"), label="uncertainty")
    base = np.zeros(len(rows))
    for name, colour in _PENALTIES:
        depth = np.array([float(row.get(f"challenger/{name}") or 0.0) for row in rows])
        if depth.any():
            axes.bar(steps, -depth, 0.6, bottom=base, color=light(colour), label=f"less {name}")
        base -= depth
    draw_line(axes, run, "challenger/reward", "reward", light("ink"))


def _local(axes: "Axes", run: RunData) -> None:
    draw_line(axes, run, "recurrence/near", "near-equal before", light("red"), width=2.2)
    draw_line(axes, run, "recurrence/seen_clusters", "cluster seen before", light("orange"), dashed=True)
    draw_line(axes, run, "recurrence/overlap", "overlap of clusters", light("purple"))
    draw_line(axes, run, "text/recurrence", "same text before", light("grey"), dashed=True, width=1.0)
    draw_line(axes, run, "challenger/repetition", "batch penalty", light("blue"))
    axes.set_ylim(bottom=0)


def _phases(axes: "Axes", run: RunData) -> None:
    draw_stack(axes, run, [(f"time/{phase}", phase, cycle(i)) for i, phase in enumerate(PHASES)])
    axes.set_ylabel("seconds")


def _training_set(axes: "Axes", run: RunData) -> None:
    parts = [
        ("solver/new", "new questions", light("blue")),
        ("solver/replayed", "replayed", light("purple")),
    ]
    draw_stack(axes, run, parts)


def _chart(key: str, title: str, caption: str, *parts: tuple[str, str, str], bottom: bool = True) -> Chart:
    metrics = tuple(part[0] for part in parts)
    return Chart(key, title, caption, metrics, lines(*parts, bottom=bottom), ITERATIONS)


LEARNING: tuple[Chart, ...] = (
    Chart(
        "accuracy",
        "Accuracy on held-out problems",
        "0: before the first iteration; then after the Solver's training of each.",
        ("heldout",),
        _accuracy,
        ITERATIONS,
    ),
    _chart(
        "labels",
        "Pseudo-labels",
        "Right: share of the valid questions' labels, where the truth is known.",
        ("labels/accuracy", "right", "blue"),
        ("labels/known", "truth known", "grey"),
    ),
    _chart(
        "pool",
        "Questions of the pool",
        "Valid: the share s of the Solver's most common answer lies in the band.",
        ("pool/wellformed", "well-formed", "teal"),
        ("pool/valid", "valid", "blue"),
        ("pool/share_mean", "mean s", "orange"),
    ),
    Chart(
        "reward",
        "The Challenger's reward",
        "Means over well-formed rollouts: uncertainty, penalties, and what remains (after a floor, if any).",
        ("challenger/reward",),
        _reward,
        ITERATIONS,
    ),
    _chart(
        "failures",
        "What could not be used",
        "Malformed: of the Challenger's rollouts. No code: the question itself was embedded.",
        ("challenger/malformed", "malformed", "red"),
        ("skills/unparsed", "no code", "orange"),
    ),
    Chart(
        "training_set",
        "The Solver's training set",
        "",
        ("solver/new", "solver/replayed"),
        _training_set,
        ITERATIONS,
    ),
    Chart(
        "phases",
        "Seconds per phase",
        "Stacked.",
        tuple(f"time/{phase}" for phase in PHASES),
        _phases,
        ITERATIONS,
    ),
)

DIVERSITY: tuple[Chart, ...] = (
    Chart(
        "local",
        "Within a batch against across iterations",
        "What recurs from the past (shares of the valid questions), and the batch's repetition penalty.",
        ("recurrence/near", "text/recurrence", "challenger/repetition"),
        _local,
        ITERATIONS,
    ),
    _chart(
        "clusters",
        "Clusters of skills",
        "Effective: exp of the entropy of their sizes. New: not seen in earlier iterations.",
        ("skill/clusters", "clusters", "blue"),
        ("skill/effective_clusters", "effective", "teal"),
        ("skill/new_clusters", "new", "orange"),
    ),
    _chart(
        "surface",
        "Clusters by words and by skill",
        "Of the same sampled questions, at the same threshold of distance.",
        ("surface/clusters", "by words (BLEU)", "purple"),
        ("surface/skill_clusters", "by skill", "blue"),
    ),
    _chart(
        "pairs",
        "Pairs of questions",
        "Hidden: of the pairs of one skill, those that are far from each other in words.",
        ("pairs/far_of_one_skill", "hidden", "red"),
        ("pairs/one_skill", "one skill", "blue"),
    ),
    _chart(
        "likeness",
        "Mean likeness of pairs",
        "Past: of a question and one of an earlier iteration. Others: of one iteration.",
        ("recurrence/mean_cosine", "past (cosine)", "orange"),
        ("skill/cosine_mean", "skill (cosine)", "blue"),
        ("surface/bleu_mean", "words (BLEU)", "purple"),
        bottom=False,
    ),
    _chart(
        "largest",
        "Largest cluster and different texts",
        "Shares of the valid questions, and of the well-formed ones.",
        ("skill/largest_share", "largest cluster", "orange"),
        ("text/distinct", "different texts", "grey"),
    ),
)


def scatter_svg(pairs: Sequence[Sequence[Any]], distance: float) -> str | None:
    """Draw sampled pairs, a panel per iteration: likeness in words against likeness in skill.

    Args:
        pairs: iteration, BLEU, cosine.
        distance: threshold of the clusters; where two questions are alike, likeness is above 1 - distance.

    Returns:
        SVG for a page, or None without pairs.
    """
    import matplotlib
    from matplotlib.figure import Figure

    iterations = sorted({pair[0] for pair in pairs})
    if not iterations:
        return None
    spread_out = [iterations[(len(iterations) - 1) * i // (_PANELS - 1)] for i in range(_PANELS)]
    shown = iterations if len(iterations) <= _PANELS else spread_out
    low = min(0.0, *(pair[2] for pair in pairs))
    with matplotlib.rc_context(rc_params("scatter")):
        figure = Figure(figsize=(13.0, 2.6), layout="constrained")
        panels = figure.subplots(1, _PANELS, sharex=True, sharey=True)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes, iteration in zip(panels, shown, strict=False):
            own = [pair for pair in pairs if pair[0] == iteration]
            _scatter(axes, [pair[1] for pair in own], [pair[2] for pair in own], 1 - distance)
            axes.set_title(f"iteration {iteration}")
            axes.set_xlim(-0.03, 1.03)
            axes.set_ylim(low - 0.03, 1.03)
        panels[0].set_ylabel("skill (cosine)")
        return inline_svg(svg_text(figure), "scatter")


def _scatter(axes: "Axes", bleu: Sequence[float], cosine: Sequence[float], alike: float) -> None:
    axes.axhline(alike, color=light("grey"), linewidth=0.8)
    axes.axvline(alike, color=light("grey"), linewidth=0.8)
    axes.scatter(bleu, cosine, s=7, color=light("blue"), alpha=0.45, linewidths=0)
    axes.set_xlabel("words (BLEU)")
