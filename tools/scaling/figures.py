"""The figures of a study: throughput, speed-up, and where the seconds go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_srpo.report.style import cycle, light, rc_params
from megatron_srpo.session.recording import TRAINING_PHASES
from tools.scaling.results import Scaled, curves, staleness_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("svg", "png")
_SIZE = (6.0, 3.6)
#: Where the largest value is more than so many times the smallest, a linear axis would flatten a curve.
_LINEAR_UP_TO = 5.0


@dataclass(frozen=True)
class Kind:
    """What a figure of curves shows of each line.

    Attributes:
        ideal: the same if nothing were lost, by the first line of a curve and the line itself.
        doubling: on a logarithmic axis, as the nodes are.
    """

    mode: str
    file: str
    title: str
    label: str
    measured: Callable[[Scaled], float | None]
    predicted: Callable[[Scaled], float | None]
    ideal: Callable[[Scaled, Scaled], float | None]
    doubling: bool = False


def _per_gpu(line: Scaled) -> float | None:
    return None if line.result.rate is None else line.result.rate / line.result.gpus


def _predicted_per_gpu(line: Scaled) -> float | None:
    rate = line.result.predicted_rate
    return None if rate is None else rate / line.result.gpus


KINDS = (
    Kind(
        "weak",
        "throughput",
        "Weak scaling: the batch grows",
        "tokens/s/GPU",
        _per_gpu,
        _predicted_per_gpu,
        lambda first, line: _per_gpu(first),
    ),
    Kind(
        "strong",
        "speed_up",
        "Strong scaling: the batch stays",
        "speed-up",
        lambda line: line.speed_up,
        lambda line: line.predicted_speed_up,
        lambda first, line: line.result.gpus / first.result.gpus,
        doubling=True,
    ),
)


def draw(lines: Sequence[Scaled], unit: str, folder: Path) -> list[str]:
    """Draw what the study has measured; return the names of the files, an SVG and a PNG of each figure.

    Args:
        unit: what a number of nodes counts.
    """
    names = []
    for kind in KINDS:
        found = list(curves(lines, kind.mode))
        if found:
            plot = partial(_draw_curves, kind=kind, found=found, unit=unit)
            names += _figure(folder, kind.file, _SIZE, plot)
    bars = _bars(lines, unit)
    if bars:
        size = (7.0, 1.1 + 0.26 * len(bars))
        names += _figure(folder, "phases", size, partial(_draw_bars, bars=bars))
    return names


def _figure(folder: Path, name: str, size: tuple[float, float], plot: Callable[["Axes"], None]) -> list[str]:
    import matplotlib
    from matplotlib.figure import Figure

    files = [f"{name}.{ending}" for ending in FORMATS]
    with matplotlib.rc_context(rc_params(name)):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.add_subplot())
        for file in files:
            # Without a date, equal numbers give equal bytes.
            metadata = {"Date": None, "Creator": None} if file.endswith("svg") else None
            figure.savefig(folder / file, metadata=metadata, dpi=150)
    return files


def _draw_curves(axes: "Axes", kind: Kind, found: Sequence[tuple[int, Sequence[Scaled]]], unit: str) -> None:
    shown: list[float] = []
    for index, (staleness, curve) in enumerate(found):
        name, colour = staleness_name(staleness), cycle(index)
        shown += _line(axes, curve, kind.measured, "o-", colour, name)
        shown += _line(axes, curve, kind.predicted, "s--", colour, f"{name}, predicted", hollow=True)
        # Curves may have ideals of their own; the legend names one.
        label = "_" if index else "ideal"
        shown += _line(axes, curve, partial(kind.ideal, curve[0]), ":", light("grey"), label)
    axes.set_title(kind.title)
    axes.set_ylabel(kind.label)
    _node_axis(axes, sorted({line.result.nodes for _, curve in found for line in curve}), unit)
    if kind.doubling:
        _doubling_axis(axes, shown)
    elif max(shown) > _LINEAR_UP_TO * min(shown) > 0:
        _log_axis(axes)
    else:
        axes.set_ylim(0, 1.15 * max(shown))
    axes.legend(loc="best")


def _line(
    axes: "Axes",
    curve: Sequence[Scaled],
    value: Callable[[Scaled], float | None],
    style: str,
    colour: str,
    label: str,
    hollow: bool = False,
) -> list[float]:
    """Draw one value along a curve where it is known; return what was drawn."""
    pairs = [(line.result.nodes, found) for line in curve if (found := value(line)) is not None]
    if pairs:
        nodes, values = zip(*pairs, strict=True)
        face = "none" if hollow else colour
        axes.plot(nodes, values, style, color=colour, label=label, markersize=4.5, markerfacecolor=face)
    return [found for _, found in pairs]


def _log_axis(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _doubling_axis(axes: "Axes", shown: Sequence[float]) -> None:
    """As the axis of the nodes, so that what scales ideally is a straight line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log", base=2)
    axes.set_ylim(min(0.9, 0.85 * min(shown)), 1.2 * max(shown))
    axes.yaxis.set_major_locator(LogLocator(base=2))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _node_axis(axes: "Axes", nodes: Sequence[int], unit: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(nodes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(unit)
    if len(nodes) == 1:
        axes.set_xlim(nodes[0] / 2, nodes[0] * 2)
    else:
        axes.margins(x=0.06)


@dataclass(frozen=True)
class Bar:
    """One stack: a name, and seconds by phase."""

    name: str
    seconds: Mapping[str, float]
    predicted: bool = False


def _bars(lines: Sequence[Scaled], unit: str) -> list[Bar]:
    """Return each line's measured phases, with the predicted ones below."""
    bars = []
    for line in lines:
        one, predicted = line.result, line.result.predicted
        if one.measured is None:
            continue
        seconds = {phase: spread.mean for phase, spread in one.measured.seconds.items()}
        count = f"{one.nodes} {unit if one.nodes > 1 else unit.removesuffix('s')}"
        bars.append(Bar(f"{one.mode}, {staleness_name(one.staleness)}, {count}", seconds))
        if predicted and predicted.seconds:
            bars.append(Bar("predicted", predicted.seconds, predicted=True))
    return bars


def _draw_bars(axes: "Axes", bars: Sequence[Bar]) -> None:
    # A prediction stands close to what it is a prediction of.
    places = [index - 0.22 * bar.predicted for index, bar in enumerate(bars)]
    left = [0.0] * len(bars)
    faint = [0.5 if bar.predicted else 1.0 for bar in bars]
    for index, phase in enumerate(TRAINING_PHASES):
        widths = [bar.seconds[phase] for bar in bars]
        drawn = axes.barh(places, widths, left=left, height=0.68, color=cycle(index), label=phase)
        for patch, alpha in zip(drawn.patches, faint, strict=True):
            patch.set_alpha(alpha)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds of a step")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(TRAINING_PHASES))
