"""Plans as text: tables for a terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import asdict

from megatron_srpo.planner.assumptions import meanings
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.memory import host_bytes, in_gib, usable_bytes
from megatron_srpo.planner.parameters import active_parameters, model_parameters, rank_parameters
from megatron_srpo.planner.published import SOURCES, Published
from megatron_srpo.planner.scaling import VARIATION, Curve, Effect
from megatron_srpo.planner.search import Found
from megatron_srpo.planner.step import Plan, Problem

Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table that is also aligned for a terminal; columns of numbers to the right."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(head)
    right = [bool(cells) and all(_is_number(cell) for cell in cells) for cells in columns]
    widths = [max(map(len, (name, *cells))) for name, cells in zip(head, columns, strict=True)]

    def line(row: Row) -> str:
        parts = zip(row, widths, right, strict=True)
        return (
            f"| {' | '.join(cell.rjust(width) if far else cell.ljust(width) for cell, width, far in parts)} |"
        )

    rule = ["-" * (width - 1) + (":" if far else "-") for width, far in zip(widths, right, strict=True)]
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, rows)])


def _is_number(cell: str) -> bool:
    """Say whether a cell is a number, with a sign, separators, a per cent sign or an exponent."""
    try:
        float(cell.replace(",", "").removesuffix("%"))
    except ValueError:
        return False
    return True


def describe_problem(problem: Problem) -> str:
    """Say what is planned: model, batch, lengths, GPU."""
    shape, work, gpu = problem.shape, problem.workload, problem.gpu
    whole = model_parameters(shape)
    lines = [
        f"model    {shape.name}: {whole.total:,} parameters, {active_parameters(shape):,} per token; "
        f"{shape.num_layers} layers",
        f"step     {work.prompts} prompts x {work.samples} responses; prompts of {work.prompt_tokens}, "
        f"responses of {work.response_tokens} (longest {work.max_response_tokens}); {work.tokens:,} tokens",
        f"         {work.distilled_share:.0%} of rollouts distilled, teacher {work.teacher}; micro-batches "
        f"of {work.micro_batch_tokens} tokens; staleness {work.staleness}",
        f"GPU      {gpu.name}: {gpu.memory_bytes / 1e9:.0f} GB, {gpu.bf16_flops / 1e12:.0f} TFLOP/s bf16",
    ]
    return "\n".join(lines)


def describe_plan(problem: Problem, plan: Plan) -> str:
    """Say what one layout takes, part by part."""
    available = usable_bytes(problem.gpu, problem.assumptions)
    parts = [
        f"layout   {plan.layout}; {plan.engine}; {plan.gpus} GPUs",
        f"step     {plan.seconds:.1f} s, {plan.tokens_per_second_per_gpu:,.0f} tokens/s/GPU",
        "",
        parameter_table(problem, plan.layout),
        "",
        f"Memory of the fullest GPU (pipeline stage {plan.stage}), {in_gib(available):.1f} GiB usable:",
        "",
        memory_table(problem, plan),
        "",
        phase_table(problem, plan),
    ]
    if plan.traffic:
        parts += ["", traffic_table(plan)]
    return "\n".join(parts)


def parameter_table(problem: Problem, layout: Layout) -> str:
    """Parameters by part: the model's, and those of one GPU of the first and the last stage."""
    counts = {"model": model_parameters(problem.shape)}
    counts["GPU of stage 0"] = rank_parameters(problem.shape, layout, 0)
    last = layout.pipeline - 1
    if last:
        counts[f"GPU of stage {last}"] = rank_parameters(problem.shape, layout, last)
    rows = [
        [part, *(f"{asdict(count)[part]:,}" for count in counts.values())]
        for part in asdict(counts["model"])
        if any(asdict(count)[part] for count in counts.values())
    ]
    rows.append(["total", *(f"{count.total:,}" for count in counts.values())])
    return table(["parameters", *counts], rows)


def memory_table(problem: Problem, plan: Plan) -> str:
    """Memory by part at the fullest moment, and of a GPU that samples; host memory where it is used."""
    rows = [[name, f"{in_gib(size):.2f}"] for name, size in asdict(plan.memory).items() if size]
    rows.append(["total at the fullest moment", f"{in_gib(plan.memory.total):.2f}"])
    parameters = rank_parameters(problem.shape, plan.layout, plan.stage)
    on_host = host_bytes(parameters, plan.layout, problem.workload.teacher).total
    rows += [["in host memory", f"{in_gib(on_host):.2f}"]] if on_host else []
    if plan.engine_weights:
        where = "beside the trainer's" if plan.engine.colocated else "on GPUs of its own"
        rows.append([f"server's weights, {where}", f"{in_gib(plan.engine_weights):.2f}"])
        rows.append([f"server's cache ({plan.running:.0f} sequences)", f"{in_gib(plan.engine_cache):.2f}"])
    return table(["part", "GiB"], rows)


def phase_table(problem: Problem, plan: Plan) -> str:
    """Seconds by phase; with stale rollouts, sampling runs beside training."""
    rows = [
        [name, f"{seconds:.2f}", f"{seconds / plan.seconds:.0%}"]
        for name, seconds in asdict(plan.phases).items()
        if seconds
    ]
    note = " (sampling beside training)" if problem.workload.staleness else ""
    rows.append([f"step{note}", f"{plan.seconds:.2f}", "100%"])
    return table(["phase", "seconds", "share"], rows)


def traffic_table(plan: Plan) -> str:
    """What a GPU sends per step, by collective."""
    rows = [
        [one.name, one.collective, one.link, f"{in_gib(one.sent):.2f}", f"{one.seconds:.2f}"]
        for one in plan.traffic
    ]
    return table(["communication", "collective", "link", "GiB sent", "seconds"], rows)


def found_table(found: Found) -> str:
    """The best layouts of a search, and why the others fail."""
    rows = [
        [
            str(plan.layout),
            str(plan.engine),
            f"{plan.seconds:.1f}",
            f"{plan.tokens_per_second_per_gpu:,.0f}",
            f"{in_gib(plan.memory.total):.1f}",
            f"{plan.phases.rollout:.1f}",
            f"{plan.phases.training:.1f}",
        ]
        for plan in found.plans
    ]
    head = ["layout", "servers", "s/step", "tokens/s/GPU", "GiB", "rollout s", "training s"]
    lines = [f"{found.tried} layouts tried."]
    lines += ["", table(head, rows)] if rows else ["None fits."]
    if found.failures:
        lines += ["", "Why others fail (the nearest miss of each):"]
    for failure in found.failures:
        lines.append(f"  {failure.count} x {failure.reason}: {failure.layout}, {failure.engine}:")
        lines.append(f"      {failure.message}")
    return "\n".join(lines)


def curve_table(curves: Sequence[Curve]) -> str:
    """The scaling curve: one row per number of GPUs and staleness."""
    rows, ends = [], []
    for one in curves:
        mode = "on-policy" if one.staleness == 0 else f"{one.staleness}-off"
        for point in one.points:
            plan = point.plan
            rows.append(
                [
                    mode,
                    f"{point.gpus:,}",
                    f"{point.prompts:,}",
                    f"{plan.seconds:.1f}",
                    f"{plan.tokens_per_second_per_gpu:,.0f}",
                    f"{plan.tokens_per_second_per_gpu * plan.gpus:,.0f}",
                    f"{point.efficiency:.0%}",
                ]
            )
        ends += [f"{mode} ends at {one.ended}"] if one.ended else []
        if one.effects:
            named = ", ".join(f"{effect.name} {effect.swing:.1%}" for effect in one.effects[:3])
            ends.append(
                f"{mode}, {one.points[-1].gpus:,} GPUs, depends most on (a fifth changes a step by): {named}"
            )
    head = ["", "GPUs", "prompts", "s/step", "tokens/s/GPU", "tokens/s", "efficiency"]
    return "\n".join([table(head, rows), "", *(f"* {end}" for end in ends)])


def effect_table(effects: Sequence[Effect], keep: int = 8) -> str:
    """Assumptions by their effect on a step's seconds."""
    meaning = meanings()
    rows = [
        [one.name, f"{one.value:g}", f"{one.low:+.1%}", f"{one.high:+.1%}", meaning[one.name]]
        for one in effects[:keep]
    ]
    head = ["assumption", "value", f"-{VARIATION:.0%}", f"+{VARIATION:.0%}", "what it is"]
    return table(head, rows)


def published_table(rows: Sequence[Published]) -> str:
    """Published numbers, predictions and errors; sources below."""
    cells = [
        [
            row.source + (" *" if row.held_out else ""),
            row.model,
            row.what,
            f"{row.value:,g} {row.unit}",
            f"{row.predicted:,.4g}",
            f"{row.error:+.0%}",
        ]
        for row in rows
    ]
    head = ["source", "model", "what", "published", "predicted", "error"]
    return table(head, cells)


def error_summary(rows: Sequence[Published]) -> str:
    """Mean and largest absolute errors."""
    errors = sorted((abs(row.error) for row in rows), reverse=True)
    new = [f"{row.error:+.0%}" for row in rows if row.held_out]
    return (
        f"{len(errors)} rows: mean error {sum(errors) / len(errors):.0%}, largest {errors[0]:.0%}; rows that "
        f"were added after the assumptions had been set (*): {', '.join(new)}"
    )


def source_list() -> str:
    """Where the published rows come from."""
    return "\n".join(f"* {name}: {text}" for name, text in SOURCES.items())
