"""The charts of one run, each as SVG text for the report page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_srpo.report.clocks import CLOCKS, STEPS, Clock
from megatron_srpo.report.console import PHASES
from megatron_srpo.report.curves import draw_group, draw_interval
from megatron_srpo.report.drawing import SIZE, draw_band, draw_curve, draw_line, draw_stack, finish_axes
from megatron_srpo.report.run_data import RunData, best
from megatron_srpo.report.style import ROUTE_COLOURS, cycle, inline_svg, light, rc_params, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Chart:
    """One chart: what it shows, which metrics it can use, and how it is drawn.

    The chart is drawn when at least one of ``metrics`` has values.
    """

    key: str
    title: str
    caption: str
    metrics: tuple[str, ...]
    draw: Callable[["Axes", RunData], None]
    clock: Clock = STEPS

    def missing(self, run: RunData) -> bool:
        """Say whether the run has none of the metrics that this chart shows."""
        return not set(self.metrics) & set(run.metrics())

    def svg(self, run: RunData) -> str:
        """Draw the chart of a run; the same rows give the same bytes."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(rc_params(self.key)):
            figure = Figure(figsize=SIZE, layout="constrained")
            axes = figure.add_subplot()
            self.draw(axes, run)
            finish_axes(axes, self.clock.label)
            return inline_svg(svg_text(figure), self.key)


def _reward(axes: "Axes", run: RunData) -> None:
    sources = run.names_between("reward/", "/accuracy")
    for index, source in enumerate(sources if len(sources) > 1 else []):
        draw_line(axes, run, f"reward/{source}/accuracy", source, cycle(index + 1), width=1.0)
    draw_line(axes, run, "reward/accuracy", "accuracy", light("blue"), width=2.2)
    if run.series("reward/mean") != run.series("reward/accuracy"):  # with 0/1 rewards they are one line
        draw_line(axes, run, "reward/mean", "mean reward", light("ink"), dashed=True, width=1.0)


def _evaluation(axes: "Axes", run: RunData) -> None:
    for index, name in enumerate(run.names_between("eval/", "/accuracy")):
        draw_line(axes, run, f"eval/{name}/accuracy", name, cycle(index + 1), width=1.1)
    draw_line(axes, run, "eval/accuracy", "mean of sets", light("blue"), width=2.2)
    steps, values = run.series("eval/accuracy")
    top = best(steps, values)
    for step, value in sorted({(steps[0], values[0]), top, (steps[-1], values[-1])}) if top else ():
        axes.annotate(
            f"{value:.2f}", (step, value), (0, 5), textcoords="offset points", ha="center", fontsize=8
        )
    axes.margins(x=0.06, y=0.12)


def _prompts(axes: "Axes", run: RunData) -> None:
    names = (
        ("all_right", "all right", "teal"),
        ("mixed", "mixed", "blue"),
        ("all_wrong", "all wrong", "red"),
    )
    draw_stack(axes, run, [(f"reward/prompts_{key}", label, light(colour)) for key, label, colour in names])


def _routes(axes: "Axes", run: RunData) -> None:
    draw_stack(
        axes, run, [(f"route/{name}_share", name, light(ROUTE_COLOURS[name])) for name in ROUTE_COLOURS]
    )
    information = "route/teacher_information_share"
    draw_line(axes, run, information, "teacher information", light("ink"), dashed=True)


def _teacher_entropy(axes: "Axes", run: RunData) -> None:
    draw_band(axes, run, "teacher/entropy", light("purple"))
    draw_line(axes, run, "teacher/entropy_p50", "median", light("purple"), dashed=True, width=1.0)
    axes.set_ylim(bottom=0)


def _weights(axes: "Axes", run: RunData) -> None:
    draw_line(axes, run, "teacher/weight_max", "largest", light("red"))
    draw_line(axes, run, "teacher/weight_mean", "mean", light("blue"))
    axes.set_ylim(bottom=0)


def _length(axes: "Axes", run: RunData) -> None:
    draw_band(axes, run, "response/length", light("teal"))
    draw_line(axes, run, "response/length_max", "longest", light("grey"), dashed=True, width=1.0)
    axes.set_ylim(bottom=0)


def _difference(axes: "Axes", run: RunData) -> None:
    draw_line(axes, run, "engine/logprob_diff_max", "largest", light("red"))
    draw_line(axes, run, "engine/logprob_diff_mean", "mean", light("blue"))
    values = run.series("engine/logprob_diff_max")[1] + run.series("engine/logprob_diff_mean")[1]
    if any(value > 0 for value in values):  # an exact 0 has no logarithm; then the axis stays linear
        axes.set_yscale("log")


def _gradient(axes: "Axes", run: RunData) -> None:
    draw_line(axes, run, "optim/grad_norm", "gradient norm", light("olive"))
    _, values = run.series("optim/grad_norm")
    if values and min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _phases(axes: "Axes", run: RunData) -> None:
    draw_stack(axes, run, [(f"time/{phase}", phase, cycle(i)) for i, phase in enumerate(PHASES)])
    draw_curve(axes, *run.step_seconds(), "step", light("ink"), width=1.0)
    axes.set_ylabel("seconds")


def _accuracy(clock: Clock) -> Callable[["Axes", RunData], None]:
    def draw(axes: "Axes", run: RunData) -> None:
        draw_group(axes, [run], "reward/accuracy", clock, "training, as sampled", light("grey"), width=1.0)
        draw_interval(axes, run, "eval/accuracy", clock, light("blue"))
        label = "held out, 95 %" if "eval/accuracy_low" in run.metrics() else "held out"
        draw_group(axes, [run], "eval/accuracy", clock, label, light("blue"), width=2.2)

    return draw


def lines(*parts: tuple[str, str, str], bottom: bool = False) -> Callable[["Axes", RunData], None]:
    """Return what draws (metric, label, name of a colour) as lines; ``bottom``: the axis begins at 0."""

    def draw(axes: "Axes", run: RunData) -> None:
        for metric, label, colour in parts:
            draw_line(axes, run, metric, label, light(colour))
        if bottom:
            axes.set_ylim(bottom=0)

    return draw


def _lines_chart(
    key: str, title: str, caption: str, *parts: tuple[str, str, str], bottom: bool = False
) -> Chart:
    return Chart(key, title, caption, tuple(part[0] for part in parts), lines(*parts, bottom=bottom))


ACCURACY_CHARTS: tuple[Chart, ...] = tuple(
    Chart(
        f"accuracy-{clock.key}",
        f"Accuracy against {clock.title}",
        "",
        ("eval/accuracy", "reward/accuracy"),
        _accuracy(clock),
        clock,
    )
    for clock in CLOCKS
)

CHARTS: tuple[Chart, ...] = (
    Chart(
        "reward",
        "Training reward",
        "Share of rollouts that are right, over all and per source of prompts.",
        ("reward/accuracy", "reward/mean"),
        _reward,
    ),
    Chart(
        "evaluation",
        "Evaluation on held-out problems",
        "Before (step 0), during and after training; first, best and last are written out.",
        ("eval/accuracy",),
        _evaluation,
    ),
    Chart(
        "prompts",
        "Prompt groups",
        "Only mixed groups give an advantage or a demonstration.",
        ("reward/prompts_all_right", "reward/prompts_mixed", "reward/prompts_all_wrong"),
        _prompts,
    ),
    Chart(
        "routes",
        "Routing",
        "Share of rollouts per branch; dashed: share for which the teacher has information.",
        tuple(f"route/{name}_share" for name in ROUTE_COLOURS),
        _routes,
    ),
    Chart(
        "entropy",
        "Teacher entropy (nats)",
        "Near zero with short responses: collapse. Rising while the divergence falls: drift.",
        ("teacher/entropy_mean", "teacher/entropy_p50"),
        _teacher_entropy,
    ),
    Chart(
        "weights",
        "Distillation weights",
        "exp(-beta H) over distilled tokens, normalised to mean 1 over the step.",
        ("teacher/weight_mean", "teacher/weight_max"),
        _weights,
    ),
    _lines_chart(
        "divergence",
        "Divergence from student to teacher",
        "Unweighted mean over distilled tokens.",
        ("loss/divergence", "divergence", "purple"),
        bottom=True,
    ),
    _lines_chart(
        "gain",
        "Teacher's gain on sampled tokens (nats)",
        "Mean of log q - log pi where distilled: below 0, the teacher doubts what the student wrote.",
        ("teacher/token_gain", "log q - log pi", "orange"),
    ),
    Chart("length", "Response length (tokens)", "", ("response/length_mean", "response/length_max"), _length),
    _lines_chart(
        "truncated",
        "Truncated responses",
        "Share of responses cut by the token limit.",
        ("response/truncated_share", "share", "red"),
        bottom=True,
    ),
    Chart("gradient", "Gradient norm", "Before clipping.", ("optim/grad_norm",), _gradient),
    Chart(
        "difference",
        "Trainer against rollout engine",
        "|log-prob difference| of the sampled tokens, in nats, logarithmic.",
        ("engine/logprob_diff_mean", "engine/logprob_diff_max"),
        _difference,
    ),
    _lines_chart(
        "losses",
        "Loss parts",
        "",
        ("loss/total", "total", "ink"),
        ("loss/policy", "policy", "blue"),
        ("loss/distill", "distill", "orange"),
    ),
    _lines_chart(
        "clipping",
        "Clipped tokens",
        "Share of policy tokens beyond the clip range, and of importance weights at their cap.",
        ("policy/clip_share_low", "low", "blue"),
        ("policy/clip_share_high", "high", "orange"),
        ("policy/dual_clip_share", "dual clip", "purple"),
        ("engine/importance_capped_share", "importance cap", "grey"),
    ),
    _lines_chart(
        "policy_entropy",
        "Policy entropy (nats)",
        "Over response tokens.",
        ("policy/entropy", "entropy", "teal"),
        bottom=True,
    ),
    Chart(
        "phases",
        "Seconds per phase",
        "Stacked; line: the step without evaluation and checkpoint.",
        ("time/step", *(f"time/{phase}" for phase in PHASES)),
        _phases,
    ),
)
