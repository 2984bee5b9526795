"""The work of a step shared out to replicas: nothing changes but who computes what."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_srpo.config.algorithm import AlgorithmConfig, PolicyLossConfig
from megatron_srpo.data.packing import sequence_cost
from megatron_srpo.training.microbatches import TokenSequence, micro_batches
from megatron_srpo.training.shared_work import ReplicaWork
from tests.model.tiny import EXPERTS, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import (
    FixedRollout,
    Layout,
    dealer,
    fixed_rollouts,
    full_weights,
    make_trainer,
    replica_rollouts,
    train_batch,
)

RELATIVE = 1e-5  # fp32 sums in another order, ten operations deep (test_layouts.py)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Untied: no embedding stands in for the head where a replica has no loss."""
    path = tmp_path_factory.mktemp("model")
    return str(write_random_qwen3(path, num_key_value_heads=4, tie_word_embeddings=False))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mixture")
    return str(write_random_qwen3(path, **{**EXPERTS, "num_experts": 8}, tie_word_embeddings=False))


def skewed() -> list[FixedRollout]:
    """Four groups of four; the responses of the first and third are five times as long as before."""
    return [
        replace(
            rollout,
            sequence=TokenSequence(rollout.sequence.prompt, rollout.sequence.response * 5),
            teacher_sequence=TokenSequence(rollout.teacher_sequence.prompt, rollout.sequence.response * 5),
            rollout_R=rollout.rollout_R.repeat(5),
            reward=float(index % 3 == 0),
        )
        if rollout.group % 2 == 0
        else replace(rollout, reward=float(index % 3 == 0))
        for index, rollout in enumerate(fixed_rollouts())
    ]


def lonely() -> list[FixedRollout]:
    """All wrong but one rollout: SDPO then distils its one sibling, and drops every other rollout."""
    return [
        replace(rollout, reward=float(index == 2)) for index, rollout in enumerate(fixed_rollouts(samples=2))
    ]


def train(
    rank: int,
    world: int,
    folder: str,
    layout: Layout,
    algorithm: AlgorithmConfig,
    rollouts: list[FixedRollout],
    mini_batches: int = 1,
) -> dict[str, Any]:
    """Train on the same batch twice; return what must not depend on who computed what."""
    groups = layout.initialize()
    trainer = make_trainer(folder, groups, algorithm, capacity=layout.capacity, layout=layout)
    own = replica_rollouts(rollouts, layout, groups)
    results, weights = [], {}
    for _ in range(2):
        results += train_batch(trainer, own, layout.balance, len(own) // mini_batches)
        weights = weights or full_weights(trainer, folder)
    done = [result for result in results if result is not None]
    return {
        "norms": [result.optimizer.grad_norm for result in done],
        "tokens": [result.tokens for result in done],
        "sums": [result.sums for result in done[:mini_batches]],
        "denominators": [result.scale.denominator for result in done],
        "weights": weights,
    }


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["tokens"] == expected["tokens"]
    assert got["denominators"] == pytest.approx(expected["denominators"], rel=1e-12)
    assert got["norms"] == pytest.approx(expected["norms"], rel=RELATIVE)
    for ours, theirs in zip(got["sums"], expected["sums"], strict=True):
        assert ours == pytest.approx(theirs, rel=RELATIVE, abs=1e-6)
    for name, tensor in expected["weights"].items():
        assert (got["weights"][name] - tensor).norm() / tensor.norm() < RELATIVE, name


SRPO = AlgorithmConfig(name="srpo")
GRPO = AlgorithmConfig(name="grpo", policy=PolicyLossConfig(kl_coefficient=0.1))


@pytest.mark.parametrize("algorithm", [SRPO, GRPO], ids=["srpo", "grpo"])
@pytest.mark.parametrize("mini_batches", [1, 2])
def test_a_skewed_batch_trains_the_same_on_one_replica_and_on_two(
    folder: str, algorithm: AlgorithmConfig, mini_batches: int
) -> None:
    """Two mini-batches of two prompts; with one replica and with two, each holds the same prompts."""
    expected = run_ranks(1, train, folder, Layout(), algorithm, skewed(), mini_batches)[0]
    assert len(expected["norms"]) == 2 * mini_batches and min(expected["norms"]) > 1e-3
    for layout in (
        Layout(capacity=300, distributed=True, overlap=True),
        Layout(capacity=300, distributed=True, overlap=True, balance=False),
    ):
        assert_same(run_ranks(2, train, folder, layout, algorithm, skewed(), mini_batches)[0], expected)


LONELY_LAYOUTS = {
    "dp2": (2, Layout()),
    "dp2 overlap": (2, Layout(overlap=True)),
    "dp4 distributed overlap": (4, Layout(distributed=True, overlap=True)),
    "pp2 dp2 distributed overlap": (4, Layout(pp=2, distributed=True, overlap=True)),
    "cp2 dp2 overlap": (4, Layout(cp=2, overlap=True)),
    "at home": (2, Layout(distributed=True, overlap=True, balance=False)),
}


@pytest.mark.parametrize("name", LONELY_LAYOUTS)
def test_replicas_without_a_rollout_to_train_take_part(folder: str, name: str) -> None:
    algorithm = AlgorithmConfig(name="sdpo")
    world, layout = LONELY_LAYOUTS[name]
    expected = run_ranks(1, train, folder, Layout(), algorithm, lonely())[0]
    assert expected["tokens"] == [len(lonely()[3].sequence.inputs)] * 2  # and nothing that trains nothing
    assert_same(run_ranks(world, train, folder, layout, algorithm, lonely())[-1], expected)


@pytest.mark.parametrize("name", ["sdpo", "srpo"])
@pytest.mark.parametrize("ep", [2, 4])
def test_replicas_that_share_experts_meet_whatever_they_have(mixture: str, name: str, ep: int) -> None:
    """One trains nothing (sdpo), or all have different numbers of micro-batches, idle ones last (srpo)."""
    algorithm, rollouts = AlgorithmConfig(name=name), lonely() if name == "sdpo" else skewed()
    layout = Layout(ep=ep, capacity=150, overlap=True, balance=name == "sdpo")
    expected = run_ranks(1, train, mixture, Layout(), algorithm, rollouts)[0]
    assert_same(run_ranks(ep, train, mixture, layout, algorithm, rollouts)[0], expected)


def shares(rank: int, world: int, balance: bool) -> dict[str, Any]:
    """Deal a batch of which every even replica has the long ones; return what this replica computes."""
    groups = Layout().initialize()
    own = replica_rollouts(skewed(), Layout(), groups)
    work = dealer(groups, balance).deal(
        ReplicaWork(
            [r.sequence for r in own],
            {1: own[1].teacher_sequence},
            [index != 2 for index in range(len(own))],
            len(own),
        )
    )
    return {
        "slowest": (work.slowest, work.slowest_at_home),
        "score": work.to_score,
        "train": work.to_train,
        "teach": work.to_teach,
    }


@pytest.mark.parametrize("world", [2, 4])
def test_micro_batches_of_a_skewed_batch_cost_the_same_on_every_replica(world: int) -> None:
    results = run_ranks(world, shares, True)
    everything = skewed()
    by_replica = [[r for r in everything if r.group % world == number] for number in range(world)]
    assert_every_one_once(results, "score", [r.sequence for r in everything])
    assert_every_one_once(
        results, "train", [r.sequence for own in by_replica for i, r in enumerate(own) if i != 2]
    )
    taught = {own[1].sequence.response: own[1].teacher_sequence for own in by_replica}
    lessons = [(result["train"][at], lesson) for result in results for at, lesson in result["teach"].items()]
    assert len(lessons) == world
    assert all(taught[sequence.response] == lesson for sequence, lesson in lessons)

    (slowest, at_home) = results[0]["slowest"]
    assert all(result["slowest"] == (slowest, at_home) for result in results)
    assert slowest < 1.15 and at_home > 1.5  # 8 or 4 rollouts a replica
    costs = [training_cost(result["train"]) for result in results]
    dearest = max(training_cost([rollout.sequence]) for rollout in everything)
    mean = sum(costs) / world
    # The replica that carries most exceeds the mean by less than one rollout (Graham 1966).
    assert max(costs) <= mean + dearest * (1 - 1 / world)
    home = [training_cost(result["train"]) for result in run_ranks(world, shares, False)]
    assert sum(home) == pytest.approx(sum(costs)) and max(home) / mean > 1.5 > max(costs) / mean


def assert_every_one_once(results: list[dict[str, Any]], what: str, expected: list[TokenSequence]) -> None:
    found = [sequence for result in results for sequence in result[what]]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def training_cost(sequences: list[TokenSequence]) -> float:
    """Cost of a replica's micro-batches, as they are packed, by token count and attention."""
    lengths = [length for batch in micro_batches(sequences, 300) for length in batch.packed.lengths]
    return sum(sequence_cost(length, 40.0) for length in lengths)


def test_the_deal_is_the_same_twice() -> None:
    assert run_ranks(2, shares, True) == run_ranks(2, shares, True)
