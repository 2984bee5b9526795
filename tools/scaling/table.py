"""A study as tables: one CSV with everything, one Markdown page to read."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_srpo.session.recording import TRAINING_PHASES
from tools.scaling.measure import Spread
from tools.scaling.results import Scaled, staleness_name

Cell = str | int | float | None


@dataclass(frozen=True)
class Page:
    """What the page says beside its tables.

    Attributes:
        unit: what a number of nodes counts: ``nodes``, or ``replicas`` on one machine.
        lines: on the runs, one sentence each.
        figures: files beside the page.
    """

    title: str
    unit: str
    gpu: str
    lines: Sequence[str]
    figures: Sequence[str]


def write_csv(lines: Sequence[Scaled], path: Path) -> None:
    """Write every number of every line; what is not known is empty."""
    rows = [_record(line) for line in lines]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_page(lines: Sequence[Scaled], page: Page, path: Path) -> None:
    """Write the tables as Markdown."""
    path.write_text("\n".join(_page(lines, page)) + "\n", encoding="utf-8")


def _record(line: Scaled) -> dict[str, Cell]:
    one, measured = line.result, line.result.measured
    record: dict[str, Cell] = {
        "mode": one.mode,
        "nodes": one.nodes,
        "rollout_nodes": one.rollout_nodes,
        "staleness": one.staleness,
        "train_gpus": one.train_gpus,
        "servers": one.servers,
        "server_gpus": one.server_gpus,
        "prompts_per_step": one.prompts,
        "state": "failed" if one.reason else "finished",
        "reason": one.reason,
        "steps_counted": measured.steps if measured else None,
        "tokens_per_step": measured.tokens if measured else None,
        **_spread("tokens_per_second", measured.rate if measured else None),
        "tokens_per_second_per_gpu": measured.rate.mean / one.gpus if measured else None,
        "first_nodes": line.first_nodes,
        "speed_up": line.speed_up,
        "efficiency": line.efficiency,
        "sync_bytes_per_server": measured.sync_bytes if measured else None,
        "measured_staleness": measured.staleness if measured else None,
        "prompt_tokens": measured.prompt_tokens if measured else None,
        "response_tokens": measured.response_tokens if measured else None,
        "distilled_share": measured.distilled_share if measured else None,
        **_spread("step_seconds", measured.step if measured else None),
    }
    for name in TRAINING_PHASES:
        record |= _spread(f"{name}_seconds", measured.seconds[name] if measured else None)
    return {**record, **_prediction(line), "folder": one.folder}


def _prediction(line: Scaled) -> dict[str, Cell]:
    predicted = line.result.predicted
    seconds = predicted.seconds if predicted else None
    known = predicted if seconds else None
    return {
        "predicted_step_seconds": known.step if known else None,
        **{f"predicted_{name}_seconds": (seconds[name] if seconds else None) for name in TRAINING_PHASES},
        "predicted_tokens_per_second_per_gpu": known.rate_per_gpu if known else None,
        "predicted_speed_up": line.predicted_speed_up,
        "predicted_efficiency": line.predicted_efficiency,
        "no_prediction_because": predicted.obstacle if predicted else "",
    }


def _spread(name: str, value: Spread | None) -> dict[str, Cell]:
    return {
        name: value.mean if value else None,
        f"{name}_deviation": value.deviation if value else None,
    }


def _page(lines: Sequence[Scaled], page: Page) -> Iterator[str]:
    yield f"# {page.title}\n"
    yield from (f"* {text}" for text in page.lines)
    for mode in dict.fromkeys(line.result.mode for line in lines):
        yield f"\n## {mode.capitalize()} scaling\n"
        yield from _throughput([line for line in lines if line.result.mode == mode], page)
    yield "\n## Seconds of a step by phase\n\nMean ± standard deviation over the counted steps.\n"
    yield from _seconds(lines, page.unit)
    if any(line.result.predicted for line in lines):
        yield f"\n## Beside the planner's prediction for {page.gpu}\n"
        yield from _predicted(lines, page.unit)
    failed = [line.result for line in lines if line.result.reason]
    if failed:
        yield "\n## Failed\n"
        yield from dict.fromkeys(f"* `{one.folder}`: {' '.join(one.reason.split())}" for one in failed)
    if page.figures:
        yield "\n## Figures\n"
        yield from (f"![{name}]({name})" for name in page.figures)


def _throughput(lines: Sequence[Scaled], page: Page) -> Iterator[str]:
    head = ("staleness", page.unit, "GPUs (train + servers)", "prompts/step", "s/step", "tokens/s")
    yield from _table(
        (*head, "tokens/s/GPU", "speed-up", "efficiency", "MB to each server"),
        [
            (
                staleness_name(one.staleness),
                str(one.nodes),
                f"{one.train_gpus} + {one.server_gpus}",
                str(one.prompts),
                *(_rates(line) if one.measured else ("failed", *[""] * 5)),
            )
            for line in lines
            for one in [line.result]
        ],
    )


def _rates(line: Scaled) -> tuple[str, ...]:
    one, measured = line.result, line.result.measured
    if measured is None:
        raise ValueError("a line without measurements has no rates")
    return (
        _plus_minus(measured.step),
        _number(measured.rate.mean),
        _number(measured.rate.mean / one.gpus),
        _number(line.speed_up, 2),
        _share(line.efficiency),
        "none" if measured.sync_bytes is None else f"{measured.sync_bytes / 1e6:.2f}",
    )


def _seconds(lines: Sequence[Scaled], unit: str) -> Iterator[str]:
    yield from _table(
        ("mode", "staleness", unit, *TRAINING_PHASES, "step"),
        [
            (
                *_key(line),
                *(_plus_minus(measured.seconds[name]) for name in TRAINING_PHASES),
                _plus_minus(measured.step),
            )
            for line in lines
            if (measured := line.result.measured)
        ],
    )


def _predicted(lines: Sequence[Scaled], unit: str) -> Iterator[str]:
    pairs = ("s/step", "tokens/s/GPU", "speed-up", "efficiency")
    head = [f"{name}: {kind}" for name in pairs for kind in ("measured", "predicted")]
    rows = []
    for line in lines:
        one, predicted = line.result, line.result.predicted
        if one.measured is None or predicted is None:
            continue
        if predicted.obstacle:
            rows.append((*_key(line), *[""] * (len(head) - 1), f"none: {predicted.obstacle}"))
            continue
        cells = (
            _number(one.measured.step.mean, 3),
            _number(predicted.step, 3),
            _number(one.measured.rate.mean / one.gpus),
            _number(predicted.rate_per_gpu),
            _number(line.speed_up, 2),
            _number(line.predicted_speed_up, 2),
            _share(line.efficiency),
            _share(line.predicted_efficiency),
        )
        rows.append((*_key(line), *cells))
    yield from _table(("mode", "staleness", unit, *head), rows)


def _key(line: Scaled) -> tuple[str, str, str]:
    one = line.result
    return one.mode, staleness_name(one.staleness), str(one.nodes)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows)


def _plus_minus(value: Spread) -> str:
    deviation = "" if value.deviation is None else f" ± {value.deviation:.2f}"
    return f"{value.mean:.2f}{deviation}"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
