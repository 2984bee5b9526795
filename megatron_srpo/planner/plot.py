"""The scaling curve as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_srpo.errors import ConfigError
from megatron_srpo.planner.scaling import Curve
from megatron_srpo.report.style import cycle, light, rc_params

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png", ".pdf")


def write_plot(curves: Sequence[Curve], path: str | Path, title: str) -> Path:
    """Draw tokens per second over GPUs, and the efficiency below; equal curves give equal bytes (SVG).

    Raises:
        ConfigError: a format that is not one of ``FORMATS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    target = check_plot_path(path)
    with matplotlib.rc_context(rc_params("plan")):
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.02, ha="left")
        _throughput(above, curves)
        _efficiency(below, curves)
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Creator": None} if target.suffix == ".svg" else None
        figure.savefig(target, metadata=metadata, dpi=150)
    return target


def check_plot_path(path: str | Path) -> Path:
    """Return the path, if its format can be written.

    Raises:
        ConfigError: it cannot.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ConfigError(f"cannot draw {str(target)!r}: name a file that ends in {', '.join(FORMATS)}")
    return target


def name_of(curve: Curve) -> str:
    """Return the name of a curve in legends and tables."""
    return "on-policy" if curve.staleness == 0 else f"{curve.staleness}-off"


def _throughput(axes: "Axes", curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter

    for index, one in enumerate(curves):
        gpus = [point.gpus for point in one.points]
        rates = [point.plan.tokens_per_second_per_gpu * point.gpus for point in one.points]
        axes.plot(gpus, rates, "o-", color=cycle(index), markersize=3.5, label=name_of(one))
        straight = [rates[0] * count / gpus[0] for count in gpus]
        axes.plot(gpus, straight, "--", color=light("grey"), linewidth=0.8, zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylabel("tokens/s")
    axes.legend(loc="upper left")


def _efficiency(axes: "Axes", curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter

    for index, one in enumerate(curves):
        shares = [point.efficiency for point in one.points]
        axes.plot([point.gpus for point in one.points], shares, "o-", color=cycle(index), markersize=3.5)
    axes.set_ylim(0, 1.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylabel("of the first point")
    axes.set_xlabel("GPUs")
