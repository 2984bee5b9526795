"""The part of the report page that shows sampled rollouts, each token coloured by its distillation weight."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from megatron_srpo.errors import DataError
from megatron_srpo.report.samples import RolloutSample, read_samples

MAX_STEPS = 10
MAX_PER_STEP = 6
MAX_TOKENS = 600
_LEVELS = 8
_FULL_WEIGHT = 2.0  # weights have mean 1; from twice the mean on the colour is full


def rollouts_section(path: Path) -> str:
    """Return the section for a rollouts.jsonl; a missing or damaged file is said, not raised."""
    heading = "<h2>Sampled rollouts</h2>"
    try:
        samples = chosen_samples(path)
    except DataError as error:
        return f'{heading}<p class="missing">{escape(str(error))}</p>'
    if not samples:
        return (
            f'{heading}<p class="missing">No sampled rollouts ({escape(path.name)} is missing or empty).</p>'
        )
    steps = sorted({sample.step for sample in samples})
    groups = [_step_group(step, [s for s in samples if s.step == step], step == steps[-1]) for step in steps]
    return f"{heading}{_level_css()}{_scale()}{''.join(groups)}"


def chosen_samples(path: Path) -> list[RolloutSample]:
    """Return samples of at most MAX_STEPS steps, evenly spread from the first to the last."""
    steps = sorted({sample.step for sample in read_samples(path)})
    count = min(MAX_STEPS, len(steps))
    wanted = {steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)}
    kept: dict[int, list[RolloutSample]] = {step: [] for step in wanted}
    for sample in read_samples(path):
        if sample.step in kept and len(kept[sample.step]) < MAX_PER_STEP:
            kept[sample.step].append(sample)
    return [sample for step in sorted(kept) for sample in kept[step]]


def response_html(sample: RolloutSample) -> str:
    """Return the response, escaped; distilled tokens carry their weight as colour and as a tooltip."""
    shown = sample.tokens[:MAX_TOKENS]
    if sample.weights is None:
        body = escape("".join(shown))
    else:
        body = "".join(_token(sample, index) for index in range(len(shown)))
    left = len(sample.tokens) - len(shown)
    return body + (f"<i> … {left} more tokens</i>" if left else "")


def level(weight: float) -> int:
    """Return the colour step, 0 (weight 0) to 8 (twice the mean weight or more)."""
    return round(_LEVELS * min(max(weight, 0.0) / _FULL_WEIGHT, 1.0))


def _token(sample: RolloutSample, index: int) -> str:
    weights, entropies = sample.weights or (), sample.teacher_entropy
    tip = f"weight {weights[index]:.2f}"
    if entropies is not None:
        tip += f", teacher entropy {entropies[index]:.2f}"
    return f'<span class="t w{level(weights[index])}" title="{tip}">{escape(sample.tokens[index])}</span>'


def _step_group(step: int, samples: Sequence[RolloutSample], opened: bool) -> str:
    cards = "".join(_card(sample) for sample in samples)
    word = "rollout" if len(samples) == 1 else "rollouts"
    return (
        f"<details{' open' * opened}><summary>Step {step}: {len(samples)} {word}</summary>{cards}</details>"
    )


def _card(sample: RolloutSample) -> str:
    advantage = "" if sample.advantage is None else f"<span>advantage {sample.advantage:+.3f}</span>"
    head = (
        f'<span class="route {escape(sample.route)}">{escape(sample.route)}</span>'
        f"<b>reward {sample.reward:g}</b>{advantage}<span>{len(sample.tokens)} tokens, "
        f"{escape(sample.finish_reason)}</span><code>{escape(sample.prompt_id)}</code>"
        f"<span>{escape(sample.source)}</span>"
    )
    remarks = (("Feedback", sample.feedback), ("Error", sample.error))
    notes = "".join(f'<p class="note"><b>{name}:</b> {escape(text)}</p>' for name, text in remarks if text)
    return (
        f'<div class="rollout"><div class="head">{head}</div>'
        f'<pre class="prompt">{escape(sample.prompt)}</pre>'
        f"<pre>{response_html(sample)}</pre>{notes}</div>"
    )


def _level_css() -> str:
    rules = (
        f".w{i}{{background:color-mix(in srgb,var(--orange) {round(65 * i / _LEVELS)}%,transparent)}}"
        for i in range(_LEVELS + 1)
    )
    return f"<style>{''.join(rules)}</style>"


def _scale() -> str:
    weights = [_FULL_WEIGHT * i / _LEVELS for i in range(0, _LEVELS + 1, 2)]
    cells = "".join(f'<span class="w{level(weight)}">{weight:g}</span>' for weight in weights)
    return (
        f'<p class="note scale">Distillation weight of a token (mean over the step is 1): {cells}+ '
        "&nbsp; Rollouts without colour went to the policy branch or were dropped.</p>"
    )
