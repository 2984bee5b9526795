"""Small batches of rollouts that no engine sampled, with a byte-level tokenizer."""

from collections.abc import Sequence

import torch

from megatron_srpo.algorithms import build_algorithm
from megatron_srpo.algorithms.types import Assignment, TeacherEvidence
from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.data.chat import render_prompt
from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.types import Score
from megatron_srpo.rollout.types import Completion, FinishReason, VersionSpan
from megatron_srpo.session.rollouts import Rollout, ScoredBatch
from megatron_srpo.training.microbatches import TokenSequence
from megatron_srpo.training.scoring import TokenScores
from tests.data.tokenizer import byte_tokenizer


def make_prompt(group: int, source: str = "sums") -> Prompt:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{group} + 1?"})
    return Prompt(f"{source}/{group}", messages, str(group + 1), "exact", source=source)


def make_rollout(
    group: int, sample: int, text: str, source: str = "sums", finish: FinishReason = "stop"
) -> Rollout:
    """One response; a finished one ends with the end-of-sequence token, as an engine returns it."""
    tokenizer = byte_tokenizer()
    prompt = make_prompt(group, source)
    tokens = tuple(tokenizer.encode(text)) + ((tokenizer.eos_token_id,) if finish == "stop" else ())
    log_probs = tuple(-0.1 * (1 + (index + sample) % 5) for index in range(len(tokens)))
    return Rollout(
        prompt=prompt,
        group=group,
        sample=sample,
        sequence=TokenSequence(tuple(render_prompt(tokenizer, prompt.messages, False)), tokens),
        completion=Completion(
            f"1/{group}/{sample}", tokens, log_probs, finish, (VersionSpan(1, len(tokens)),)
        ),
        text=str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
    )


def make_batch(rows: Sequence[tuple[int, str, float | Score]], source: str = "sums") -> ScoredBatch:
    """Rows of (group, response, reward or score), samples counted within their group."""
    seen: dict[int, int] = {}
    rollouts, scores = [], []
    for group, text, score in rows:
        rollouts.append(make_rollout(group, seen.setdefault(group, 0), text, source))
        seen[group] += 1
        scores.append(score if isinstance(score, Score) else Score(score))
    return ScoredBatch(rollouts, scores)


def make_assignment(
    batch: ScoredBatch, algorithm: str = "srpo", feedback: bool = False, demonstrable: Sequence[bool] = ()
) -> Assignment:
    """Route a batch; every rollout can be shown unless ``demonstrable`` says otherwise."""
    shown = torch.tensor(list(demonstrable) or [True] * len(batch.rollouts))
    config = AlgorithmConfig(name=algorithm, feedback=feedback)
    return build_algorithm(config).assign(batch.for_algorithm(shown))


def token_scores(batch: ScoredBatch, shift: float = 0.0) -> list[TokenScores]:
    """Train-engine scores that differ from the rollout engine's log-probs by ``shift`` on every token."""
    return [
        TokenScores(rollout.log_prob_R.double() + shift, torch.ones(len(rollout.sequence.response)).double())
        for rollout in batch.rollouts
    ]


def evidence_for(
    batch: ScoredBatch, assignment: Assignment, entropy: float, gain: float
) -> dict[int, TeacherEvidence]:
    """A teacher of constant entropy that gives every sampled token ``gain`` more than the policy."""
    return {
        index: TeacherEvidence(
            torch.full((len(batch.rollouts[index].sequence.response),), entropy, dtype=torch.float64),
            batch.rollouts[index].log_prob_R.double() + gain,
        )
        for index in assignment.needs_teacher_N.nonzero().flatten().tolist()
    }
