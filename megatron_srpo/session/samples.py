"""A few of a step's rollouts, for people to read."""

from collections.abc import Mapping, Sequence

from megatron_srpo.algorithms.types import Assignment, Route, TeacherEvidence, TokenStreams
from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.chat import ChatTokenizer
from megatron_srpo.report.samples import RolloutSample, pick_samples
from megatron_srpo.session.rollouts import ScoredBatch

_ROUTES = {Route.POLICY: "policy", Route.DISTILL: "distill", Route.DROPPED: "dropped"}


def chosen_samples(
    config: RunConfig,
    step: int,
    batch: ScoredBatch,
    assignment: Assignment,
    streams: Sequence[TokenStreams],
    evidence: Mapping[int, TeacherEvidence],
    tokenizer: ChatTokenizer,
) -> list[RolloutSample]:
    """Pick rollouts of this replica, a rare route among them; none where the step is not sampled."""
    if step % config.report.samples_every or not config.report.samples_per_step:
        return []
    routes = [_ROUTES[Route(int(route))] for route in assignment.route_N]
    chosen = pick_samples(routes, config.report.samples_per_step, config.seed + step)
    return [
        _sample(step, index, routes[index], batch, assignment, streams[index], evidence.get(index), tokenizer)
        for index in chosen
    ]


def _sample(
    step: int,
    index: int,
    route: str,
    batch: ScoredBatch,
    assignment: Assignment,
    streams: TokenStreams,
    evidence: TeacherEvidence | None,
    tokenizer: ChatTokenizer,
) -> RolloutSample:
    rollout, score = batch.rollouts[index], batch.scores[index]
    response = rollout.sequence.response
    distilled = route == "distill"
    return RolloutSample(
        step=step,
        prompt_id=rollout.prompt.id,
        source=rollout.prompt.source,
        prompt=str(tokenizer.decode(list(rollout.sequence.prompt))),
        tokens=tuple(str(tokenizer.decode([token])) for token in response),
        route=route,
        reward=score.value,
        advantage=float(assignment.advantage_N[index]),
        weights=tuple(streams.distill_weights.tolist()) if distilled else None,
        teacher_entropy=tuple(evidence.entropy_R.tolist()) if evidence is not None else None,
        finish_reason=rollout.completion.finish_reason,
        feedback=score.feedback,
        error=score.error,
    )
