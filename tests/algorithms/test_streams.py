"""Assignment and evidence to per-token streams, against the formulas one token at a time."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.algorithms import build_algorithm
from megatron_srpo.algorithms.types import BehaviourLogProbs, TeacherEvidence, TokenStreams
from megatron_srpo.config.algorithm import ALGORITHM_NAMES, AlgorithmConfig, DistillationConfig
from tests.algorithms import reference
from tests.algorithms.reference import Sample
from tests.algorithms.strategies import batches, scored

# Streams are float32, as the log-probs of the train engine are: one rounding of each number.
FLOAT32: dict[str, Any] = {"rel": 1e-6, "abs": 1e-7}


def made_up(batch: list[Sample], seed: int = 0) -> tuple[list[BehaviourLogProbs], dict[int, TeacherEvidence]]:
    """Random log-probs of responses of 1 to 6 tokens, and a teacher's view of every one of them."""
    generator = torch.Generator().manual_seed(seed)
    behaviour, evidence = [], {}
    for index in range(len(batch)):
        length = 1 + (7 * index + seed) % 6
        old, rollout, entropy, taught = torch.rand(4, length, generator=generator) * 4
        behaviour.append(BehaviourLogProbs(-old, -rollout))
        evidence[index] = TeacherEvidence(entropy, -taught)
    return behaviour, evidence


def streams_of(
    config: AlgorithmConfig, batch: list[Sample], seed: int = 0
) -> tuple[list[TokenStreams], list[BehaviourLogProbs], dict[int, TeacherEvidence]]:
    """The streams, with evidence for just those rollouts that the algorithm sends to the teacher."""
    algorithm = build_algorithm(config)
    assignment = algorithm.assign(scored(batch))
    behaviour, everything = made_up(batch, seed)
    wanted = assignment.needs_teacher_N.nonzero().flatten().tolist()
    evidence = {index: everything[index] for index in wanted}
    return algorithm.streams(assignment, behaviour, evidence), behaviour, evidence


def route_of(stream: TokenStreams) -> str:
    policy, distill = set(stream.policy_mask.tolist()), set(stream.distill_mask.tolist())
    return {(1.0, 0.0): "policy", (0.0, 1.0): "distill", (0.0, 0.0): "dropped"}[(*policy, *distill)]


@settings(deadline=None)
@given(st.sampled_from(ALGORITHM_NAMES), batches, st.integers(0, 9))
def test_masks_follow_the_routing_table(name: str, batch: list[Sample], seed: int) -> None:
    """Each mask is all ones or all zeros over a rollout, and never are both ones."""
    streams, behaviour, _ = streams_of(AlgorithmConfig(name=name), batch, seed)
    for index, stream in enumerate(streams):
        assert {tuple(value.shape) for value in stream.__dict__.values()} == {behaviour[index].old_R.shape}
        told = reference.has_information(batch, index, False)
        assert route_of(stream) == reference.expected_route(name, reference.is_correct(batch[index]), told)


@settings(deadline=None)
@given(st.sampled_from(["srpo", "grpo", "sdpo"]), batches)
def test_every_token_of_a_rollout_has_its_group_advantage(name: str, batch: list[Sample]) -> None:
    streams, _, _ = streams_of(AlgorithmConfig(name=name), batch)
    for index, stream in enumerate(streams):
        expected = [reference.advantage(batch, index, False)] * len(stream.advantages)
        assert stream.advantages.tolist() == pytest.approx(expected, **FLOAT32)


@settings(deadline=None)
@given(batches, st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_distilled_tokens_are_weighted_by_the_teachers_entropy(batch: list[Sample], beta: float) -> None:
    config = AlgorithmConfig(distillation=DistillationConfig(entropy_beta=beta))
    streams, _, evidence = streams_of(config, batch)
    for index, stream in enumerate(streams):
        if index not in evidence:
            assert stream.distill_weights.tolist() == [1.0] * len(stream.distill_weights)
            continue
        expected = [math.exp(-beta * entropy) for entropy in evidence[index].entropy_R.tolist()]
        assert stream.distill_weights.tolist() == pytest.approx(expected, **FLOAT32)
        if beta == 0:
            assert stream.distill_weights.tolist() == [1.0] * len(expected)


@settings(deadline=None)
@given(st.sampled_from(ALGORITHM_NAMES), batches, st.sampled_from([None, 1.0, 2.0]))
def test_every_token_is_corrected_for_the_engine(name: str, batch: list[Sample], cap: float | None) -> None:
    """min(pi_old / pi_rollout, cap) on both branches (section 3)."""
    streams, behaviour, _ = streams_of(AlgorithmConfig(name=name, engine_importance_cap=cap), batch)
    for stream, seen in zip(streams, behaviour, strict=True):
        pairs = zip(seen.old_R.tolist(), seen.rollout_R.tolist(), strict=True)
        expected = [reference.importance(old, rollout, cap) for old, rollout in pairs]
        assert stream.importance_weights.tolist() == pytest.approx(expected, **FLOAT32)


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_aggregation_weighs_tokens_or_sequences(name: str) -> None:
    batch = [Sample(1, 1.0), Sample(1, 0.0), Sample(2, 0.0)]
    by_token, _, _ = streams_of(AlgorithmConfig(name=name), batch)
    by_sequence, _, _ = streams_of(AlgorithmConfig(name=name, aggregation="seq_mean_token_mean"), batch)
    for token, sequence in zip(by_token, by_sequence, strict=True):
        assert token.token_weights.tolist() == [1.0] * len(token.token_weights)
        assert sequence.token_weights.sum().item() == pytest.approx(1.0, **FLOAT32)
        assert len(set(sequence.token_weights.tolist())) == 1


@settings(deadline=None)
@given(batches, st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.integers(0, 9))
def test_the_advantage_mix_token_by_token(batch: list[Sample], share: float, seed: int) -> None:
    """lambda A_GRPO + (1 - lambda) (log q - log pi_old); without information the second term is 0."""
    streams, behaviour, evidence = streams_of(
        AlgorithmConfig(name="advantage_mix", mix_lambda=share), batch, seed
    )
    for index, stream in enumerate(streams):
        group = reference.advantage(batch, index, False)
        old = behaviour[index].old_R.tolist()
        taught = evidence[index].log_prob_R.tolist() if index in evidence else old
        expected = [share * group + (1 - share) * (q - p) for q, p in zip(taught, old, strict=True)]
        assert stream.advantages.tolist() == pytest.approx(
            expected, rel=1e-5, abs=1e-6
        )  # float32 differences
        assert stream.policy_mask.tolist() == [1.0] * len(old)
        assert (index in evidence) is reference.has_information(batch, index, False)


def test_the_mix_with_lambda_one_is_grpo() -> None:
    batch = [Sample(1, 1.0), Sample(1, 0.0), Sample(1, 0.0)]
    mix, _, evidence = streams_of(AlgorithmConfig(name="advantage_mix", mix_lambda=1.0), batch)
    grpo, _, nothing = streams_of(AlgorithmConfig(name="grpo"), batch)
    assert evidence and not nothing
    for one, other in zip(mix, grpo, strict=True):
        for name, value in one.__dict__.items():
            assert torch.equal(value, other.__dict__[name]), name


def test_streams_carry_no_gradient() -> None:
    """Weights and ratios are stop-gradient (sections 3 to 5)."""
    algorithm = build_algorithm(AlgorithmConfig())
    batch = [Sample(1, 1.0), Sample(1, 0.0)]
    behaviour, evidence = made_up(batch)
    streams = algorithm.streams(algorithm.assign(scored(batch)), behaviour, {1: evidence[1]})
    assert not any(value.requires_grad for stream in streams for value in stream.__dict__.values())
