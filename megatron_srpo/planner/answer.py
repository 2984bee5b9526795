"""What ``megatron-srpo plan`` answers: a plan or a search, curves, effects; as text and as JSON."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_srpo.errors import ConfigError
from megatron_srpo.planner import record, text
from megatron_srpo.planner.layout import Obstacle
from megatron_srpo.planner.plot import check_plot_path, write_plot
from megatron_srpo.planner.published import Published, comparisons
from megatron_srpo.planner.request import Request
from megatron_srpo.planner.scaling import Curve, Effect, curve, curves, effects
from megatron_srpo.planner.search import Found, search
from megatron_srpo.planner.step import Plan, Problem, plan_step

#: Rollouts that may lag by this many steps are drawn beside on-policy ones.
CURVE_STALENESS = (0, 1, 4)


@dataclass(frozen=True)
class Wishes:
    """What to answer besides the plan.

    Attributes:
        keep: layouts of a search to show.
        most: GPUs up to which scaling curves go; None: no curve.
        grow: let the batch grow with the GPUs.
        plot: file for the curves.
        check: compare with published numbers.
    """

    keep: int = 5
    most: int | None = None
    grow: bool = True
    plot: str | None = None
    check: bool = False


@dataclass(frozen=True)
class Answer:
    """Everything that was computed. ``plan`` is the layout that was given, or the best of ``found``."""

    problem: Problem
    plan: Plan | Obstacle | None
    found: Found | None = None
    curves: tuple[Curve, ...] = ()
    effects: tuple[Effect, ...] = ()
    published: tuple[Published, ...] = ()
    plot: Path | None = None

    @classmethod
    def of(cls, request: Request, wishes: Wishes) -> "Answer":
        """Compute what a request asks for.

        Raises:
            ConfigError, ModelError: input that cannot be used.
        """
        if wishes.plot is not None:
            check_plot_path(wishes.plot)
        problem = request.problem()
        plan, found = _plan(request, problem, wishes)
        answer = cls(problem, plan, found)
        if wishes.check:
            answer = replace(answer, published=tuple(comparisons(problem.assumptions)))
        if not isinstance(plan, Plan):
            return answer
        answer = replace(answer, effects=tuple(effects(problem, plan)))
        most = wishes.most or (16 * plan.gpus if wishes.plot else None)
        return answer if most is None else answer._with_curves(plan, most, wishes)

    def _with_curves(self, plan: Plan, most: int, wishes: Wishes) -> "Answer":
        if most < plan.gpus:
            raise ConfigError(f"--scaling {most} is below the plan's {plan.gpus} GPUs; give more")
        drawn = self._curves(plan, most, wishes.grow)
        path = None
        if wishes.plot is not None:
            batch = "prompts grow with the GPUs" if wishes.grow else "the same batch everywhere"
            path = write_plot(
                drawn, wishes.plot, f"{self.problem.shape.name} on {self.problem.gpu.name}, {batch}"
            )
        return replace(self, curves=tuple(drawn), plot=path)

    def _curves(self, plan: Plan, most: int, grow: bool) -> list[Curve]:
        """A searched plan is compared with the best ones of other stalenesses; a given layout stays alone."""
        own = self.problem.workload.staleness
        if self.found is None:
            return [curve(self.problem, plan, own, most, grow)]
        return curves(self.problem, plan.gpus, most, tuple(sorted({own, *CURVE_STALENESS})), grow)

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return isinstance(self.plan, Plan)

    def text(self) -> str:
        """Return the answer for a terminal."""
        parts = [text.describe_problem(self.problem)]
        parts += [text.found_table(self.found)] if self.found is not None else []
        if isinstance(self.plan, Obstacle):
            parts.append(f"This layout does not work: {self.plan.message} ({self.plan.reason}).")
        elif self.plan is not None:
            parts.append(text.describe_plan(self.problem, self.plan))
        if self.curves:
            parts.append("Scaling:\n\n" + text.curve_table(self.curves))
        if self.effects:
            parts.append(self._effects())
        if self.published:
            table = f"{text.published_table(self.published)}\n\n{text.error_summary(self.published)}"
            parts.append(f"Published numbers:\n\n{table}")
        parts += [f"curve: {self.plot}"] if self.plot else []
        return "\n\n".join(parts)

    def _effects(self) -> str:
        first = self.effects[0]
        said = f"What the step's seconds depend on most: {first.name} ({first.low:+.0%} / {first.high:+.0%})."
        return f"{said} Each assumption varied by a fifth:\n\n{text.effect_table(self.effects)}"

    def record(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        found: dict[str, Any] = {"problem": record.problem_record(self.problem)}
        if isinstance(self.plan, Obstacle):
            found["obstacle"] = {"reason": self.plan.reason, "message": self.plan.message}
        found["plan"] = record.plan_record(self.plan) if isinstance(self.plan, Plan) else None
        found["search"] = record.found_record(self.found) if self.found is not None else None
        found["curves"] = record.curve_record(self.curves)
        found["assumptions"] = record.effect_record(self.effects)
        found["published"] = record.published_record(self.published)
        return found


def _plan(request: Request, problem: Problem, wishes: Wishes) -> tuple[Plan | Obstacle | None, Found | None]:
    if request.names_layout:
        layout = request.given_layout()
        return plan_step(problem, layout, request.engine(layout)), None
    if request.gpus is None:
        raise ConfigError("no number of GPUs: give --gpus N to search layouts, or a layout (--tensor, ...)")
    found = search(problem, request.gpus, request.base_layout(), wishes.keep)
    return (found.plans[0] if found.plans else None), found
