"""Evaluation on held-out prompts: sample every prompt several times, score, and report per set.

How responses are generated and scored is handed in, so that the same code serves one process and many ranks
(which then call it alike, with collective callables).
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_srpo.config.evaluation import EvaluationConfig
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError
from megatron_srpo.evaluation.estimators import (
    bootstrap_interval,
    majority_accuracy,
    pass_at_k,
    standard_error,
)
from megatron_srpo.rewards.extract import final_answer
from megatron_srpo.rewards.types import Score
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.types import Completion, Request, SamplingParams

Generate = Callable[[Sequence[Request], SamplingParams], list[Completion]]
Render = Callable[[Prompt], Sequence[int]]
Decode = Callable[[Sequence[int]], str]
ScoreAll = Callable[[Sequence[Prompt], Sequence[str]], Sequence[Score]]


@dataclass(frozen=True)
class SampleRow:
    """One scored response, as it is saved."""

    id: str
    source: str
    sample: int
    question: str
    gold: str | None
    response: str
    answer: str | None
    score: float
    correct: bool
    error: str | None
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of one evaluation.

    Attributes:
        step: steps done before it; 0 is before training.
        metrics: flat names (``eval/<set>/accuracy``, ``eval/accuracy``, ...) to values.
        rows: all responses, prompt by prompt.
    """

    step: int
    metrics: dict[str, float]
    rows: tuple[SampleRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dump``."""
        return {"step": self.step, "metrics": self.metrics, "rows": [asdict(row) for row in self.rows]}

    def save(self, folder: Path) -> Path:
        """Write ``evaluation_<step>.json`` into an existing folder, whole or not at all; return its path."""
        path = folder / f"evaluation_{self.step}.json"
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1), encoding="utf-8")
        return draft.replace(path)


def evaluate(
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    *,
    generate: Generate,
    render: Render,
    decode: Decode,
    score: ScoreAll,
    max_response_tokens: int,
    run_seed: int = 0,
    step: int = 0,
) -> EvaluationResult:
    """Sample and score every prompt ``config.samples_per_prompt`` times.

    Seeds depend on the run's seed, the set, the prompt's place in it and the sample, not on the step: the
    same random numbers serve every evaluation of a run, so that differences between steps come from the
    weights, and equal weights give equal results.

    Args:
        prompts: of all sets; ``prompt.source`` names the set.
        config: sampling and what counts as right.
        generate: answers requests in their order.
        render: token ids of a prompt, chat template applied.
        decode: text of response tokens, for scoring and for the rows.
        score: scores responses, in their order.
        max_response_tokens: used where the config leaves it open.
        run_seed: seed of the run.
        step: steps done, for the result only.

    Raises:
        DataError: no prompts.
    """
    chosen = first_of_each_set(prompts, config.max_prompts)
    if not chosen:
        raise DataError("nothing to evaluate: the evaluation sets hold no prompts")
    samples = range(config.samples_per_prompt)
    requests = [
        request
        for place, prompt in chosen
        for request in _requests(prompt, place, render, run_seed, len(samples))
    ]
    sampling = SamplingParams(
        config.temperature, config.top_p, config.max_response_tokens or max_response_tokens
    )
    completions = generate(requests, sampling)
    asked = [prompt for _, prompt in chosen for _ in samples]
    texts = [decode(completion.tokens) for completion in completions]
    scores = score(asked, texts)
    rows = tuple(
        _row(place % len(samples), *parts, config.success_threshold)
        for place, parts in enumerate(zip(asked, completions, texts, scores, strict=True))
    )
    return EvaluationResult(step, summarize(rows, config), rows)


def _requests(prompt: Prompt, place: int, render: Render, run_seed: int, samples: int) -> list[Request]:
    tokens, purpose = tuple(render(prompt)), f"evaluation/{prompt.source}"
    return [
        Request(f"{prompt.id}#{sample}", tokens, request_seed(run_seed, purpose, 0, place, sample))
        for sample in range(samples)
    ]


def first_of_each_set(prompts: Sequence[Prompt], most: int | None) -> list[tuple[int, Prompt]]:
    """Return the first ``most`` prompts of every set (None: all), each with its place in its set."""
    seen: dict[str, int] = defaultdict(int)
    chosen: list[tuple[int, Prompt]] = []
    for prompt in prompts:
        place = seen[prompt.source]
        if most is None or place < most:
            chosen.append((place, prompt))
        seen[prompt.source] += 1
    return chosen


def _row(
    sample: int, prompt: Prompt, completion: Completion, text: str, score: Score, threshold: float
) -> SampleRow:
    answer = final_answer(text)
    return SampleRow(
        id=prompt.id,
        source=prompt.source,
        sample=sample,
        question=prompt.question,
        gold=prompt.answer,
        response=text,
        answer=answer.text if answer else None,
        score=score.value,
        correct=score.value >= threshold,
        error=score.error,
        tokens=len(completion.tokens),
        finish_reason=completion.finish_reason,
    )


def summarize(rows: Sequence[SampleRow], config: EvaluationConfig) -> dict[str, float]:
    """Return the metrics of every set and, under ``eval/<metric>``, their means over the sets.

    Per set: ``accuracy`` (avg@k), ``accuracy_se``, ``accuracy_low`` and ``accuracy_high`` (95 %; these three
    from two prompts on), ``pass_at_k``, ``maj_at_k``, ``score_mean``, ``truncated_share`` (did not end by
    themselves), ``response_length_mean`` (tokens), ``errors`` (share that could not be scored). Over sets:
    ``accuracy``, ``pass_at_k``, ``maj_at_k``, ``truncated_share``; ``accuracy_se`` when all sets have one.
    """
    sets: dict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        sets[row.source].append(row)
    per_set = {name: summarize_set(members, config) for name, members in sets.items()}
    metrics = {f"eval/{name}/{key}": value for name, part in per_set.items() for key, value in part.items()}
    parts = list(per_set.values())
    for key in ("accuracy", "pass_at_k", "maj_at_k", "truncated_share"):
        metrics[f"eval/{key}"] = float(np.mean([part[key] for part in parts]))
    if all("accuracy_se" in part for part in parts):
        # The sets are independent: the variance of their mean is the mean variance over their number.
        metrics["eval/accuracy_se"] = float(np.linalg.norm([part["accuracy_se"] for part in parts])) / len(
            parts
        )
    return metrics


def summarize_set(rows: Sequence[SampleRow], config: EvaluationConfig) -> dict[str, float]:
    """Return the metrics of one set; see :func:`summarize`."""
    groups: dict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        groups[row.id].append(row)
    rights = [[row.correct for row in group] for group in groups.values()]
    answers = [[row.answer for row in group] for group in groups.values()]
    means = [float(np.mean(group)) for group in rights]
    k = config.pass_k or config.samples_per_prompt
    metrics = {
        "accuracy": float(np.mean(means)),
        "pass_at_k": float(np.mean([pass_at_k(len(group), sum(group), k) for group in rights])),
        "maj_at_k": float(np.mean([majority_accuracy(*pair) for pair in zip(answers, rights, strict=True)])),
        "score_mean": float(np.mean([row.score for row in rows])),
        "truncated_share": float(np.mean([row.finish_reason != "stop" for row in rows])),
        "response_length_mean": float(np.mean([row.tokens for row in rows])),
        "errors": float(np.mean([row.error is not None for row in rows])),
    }
    if len(means) > 1:
        low, high = bootstrap_interval(means)
        metrics |= {"accuracy_se": standard_error(means), "accuracy_low": low, "accuracy_high": high}
    return metrics
