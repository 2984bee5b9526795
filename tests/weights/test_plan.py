"""The resharding plan, carried out on plain tensors and compared with dense conversion, for every layout."""

import dataclasses
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Experts, Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.engine_layout import SGLANG_VOCAB_MULTIPLE, hf_layout, sglang_layout
from megatron_srpo.weights.plan import (
    Plan,
    Training,
    count,
    format_counts,
    format_plan,
    plan_shards,
    plan_whole,
)
from tests.weights.engine_reference import megatron_parameters, random_hf, sglang_parameters
from tests.weights.reference import EXPERTS, make_arch
from tests.weights.sglang_facts import facts
from tests.weights.test_table import pipelines

ARCHITECTURES = {
    "grouped": {"num_heads": 8, "num_kv_heads": 4, "ffn_hidden_size": 16, "num_layers": 4},
    "one key/value head per group of ranks": {"num_heads": 8, "num_kv_heads": 2, "ffn_hidden_size": 16},
    "multi-head, tied": {"num_heads": 4, "num_kv_heads": 4, "tied_embeddings": True},
    "vocabulary of a padding multiple": {"num_heads": 4, "num_kv_heads": 4, "vocab_size": 128},
    "vocabulary far from one": {"num_heads": 4, "num_kv_heads": 4, "vocab_size": 130},
}
TRAINING = list(product((1, 2, 4), (1, 2)))
ENGINE = (1, 2, 4)
# Every case but four-way training of a model with two key/value heads, which Megatron-Core cannot split.
CASES = [
    pytest.param(sizes, tp, pp, engine_tp, id=f"{name}-{tp}x{pp}-{engine_tp}")
    for (name, sizes), (tp, pp), engine_tp in product(ARCHITECTURES.items(), TRAINING, ENGINE)
    if sizes["num_kv_heads"] % tp == 0
]


def make_training(
    arch: Qwen3Architecture, tp: int, pp: int | PipelineStages, multiple: int = 16, ep: int = 1
) -> Training:
    stages = pp if isinstance(pp, PipelineStages) else PipelineStages(pp)
    return Training(tp, stages, arch.padded_vocab_size(tp, multiple) // tp, ep)


def carry_out(plan: Plan, shards: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Do what the plan says with tensors in one process; return the tensors by lane."""
    held: list[dict[str, torch.Tensor]] = [{} for _ in range(plan.lanes)]
    for bucket in plan.buckets:
        flat = torch.zeros(bucket.size)
        for slot in bucket.slots:
            tensor = slot.planned.tensor
            view = flat[slot.offset : slot.offset + tensor.size].view(tensor.matrix_shape)
            for move in slot.planned.moves:
                view[move.target.slices] = shards[move.rank][move.parameter][move.source.slices]
            assert tensor.name not in held[bucket.lane], "delivered twice"
            held[bucket.lane][tensor.name] = view.view(tensor.shape)
    return held


@pytest.mark.parametrize(("sizes", "tp", "pp", "engine_tp"), CASES)
def test_every_engine_rank_gets_exactly_what_it_holds(sizes, tp, pp, engine_tp):
    arch = make_arch(**sizes)
    training = make_training(arch, tp, pp)
    hf = random_hf(arch)
    shards = megatron_parameters(arch, hf, training)
    held = carry_out(plan_shards(arch, training, engine_tp, limit=200), shards)
    for rank in range(engine_tp):
        expected = sglang_parameters(arch, hf, rank, engine_tp)
        assert held[rank].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(held[rank][name], value), name


MIXTURES = {
    "all layers": {"num_heads": 4, "num_kv_heads": 4, "experts": EXPERTS},
    "one layer dense": {
        "num_heads": 4,
        "num_kv_heads": 4,
        "experts": dataclasses.replace(EXPERTS, count=8, dense_layers=(1,)),
    },
}
MIXTURE_TRAINING = [(1, 1, 1), (1, 1, 4), (2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 2, 4), (4, 1, 2), (1, 2, 2)]


@pytest.mark.parametrize("sizes", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize(("engine_tp", "engine_ep"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize(("tp", "pp", "ep"), MIXTURE_TRAINING)
def test_every_engine_rank_gets_exactly_its_experts(sizes, tp, pp, ep, engine_tp, engine_ep):
    arch = make_arch(**sizes)
    training = make_training(arch, tp, pp, ep=ep)
    hf = random_hf(arch)
    shards = megatron_parameters(arch, hf, training)
    held = carry_out(plan_shards(arch, training, engine_tp, 200, engine_ep), shards)
    for rank in range(engine_tp):
        expected = sglang_parameters(arch, hf, rank, engine_tp, engine_ep)
        assert held[rank].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(held[rank][name], value), name


@pytest.mark.parametrize(("tp", "pp", "ep"), MIXTURE_TRAINING)
def test_whole_experts_arrive_under_their_hugging_face_names(tp, pp, ep):
    arch = make_arch(**MIXTURES["one layer dense"])
    training = make_training(arch, tp, pp, ep=ep)
    hf = random_hf(arch)
    shards = megatron_parameters(arch, hf, training)
    plan = plan_whole(arch, training, range(training.ranks), limit=300)
    arrived = {name: value for lane in carry_out(plan, shards) for name, value in lane.items()}
    assert arrived.keys() == hf.keys()
    assert all(torch.equal(arrived[name], hf[name]) for name in hf)


@pytest.mark.parametrize(("tp", "pp"), TRAINING)
def test_whole_tensors_arrive_under_their_hugging_face_names(tp, pp):
    arch = make_arch(num_heads=8, num_kv_heads=4, ffn_hidden_size=16)
    training = make_training(arch, tp, pp)
    hf = random_hf(arch)
    plan = plan_whole(arch, training, assemblers=range(training.ranks), limit=300)
    shards = megatron_parameters(arch, hf, training)
    arrived: dict[str, torch.Tensor] = {}
    for lane in carry_out(plan, shards):
        assert not arrived.keys() & lane.keys()
        arrived |= lane
    assert arrived.keys() == hf.keys()
    assert all(torch.equal(arrived[name], hf[name]) for name in hf)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Qwen3Architecture, Training, int, int]:
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    stages, layers = draw(pipelines())
    arch = make_arch(
        num_kv_heads=kv_heads,
        num_heads=4 * draw(st.sampled_from([1, 2])),
        num_layers=layers,
        head_dim=draw(st.integers(1, 5)),
        hidden_size=draw(st.integers(1, 20)),
        ffn_hidden_size=4 * draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(1, 300)),
        tied_embeddings=draw(st.booleans()),
    )
    tp = draw(st.sampled_from([n for n in (1, 2, 4) if kv_heads % n == 0]))
    training = make_training(arch, tp, stages, draw(st.integers(1, 40)))
    return arch, training, draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 5000))


@settings(max_examples=60)
@given(case=cases())
def test_any_sizes_any_layout_any_bucket(case):
    arch, training, engine_tp, limit = case
    hf = random_hf(arch)
    shards = megatron_parameters(arch, hf, training)
    plan = plan_shards(arch, training, engine_tp, limit)
    for rank, held in enumerate(carry_out(plan, shards)):
        for name, value in sglang_parameters(arch, hf, rank, engine_tp).items():
            assert torch.equal(held[name], value), name
    for bucket in plan.buckets:
        assert bucket.size <= limit or len(bucket.slots) == 1
        assert bucket.assembler == bucket.lane % training.ranks
    for round_ in plan.rounds:
        assert len({bucket.lane for bucket in round_}) == len(round_)


QWEN3_8B = {
    "num_layers": 36,
    "hidden_size": 4096,
    "ffn_hidden_size": 12288,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


@pytest.mark.parametrize("engine_tp", [1, 2, 4, 8])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 2), (8, 4)])
def test_an_engine_of_a_real_model_gets_the_model_once(tp, pp, engine_tp):
    """The bound of the specification: at most 1.05 times the model, whatever the layouts. Qwen3-8B."""
    arch = make_arch(**QWEN3_8B)
    counts = count(arch, plan_shards(arch, make_training(arch, tp, pp, 128), engine_tp, 1 << 28))
    assert counts.model == sum(tensor.size for tensor in hf_layout(arch)) == 8_190_735_360
    assert counts.model <= counts.delivered <= 1.05 * counts.model
    assert sum(counts.sent.values()) + sum(counts.local.values()) <= counts.delivered


QWEN3_30B_A3B = {
    "num_layers": 48,
    "hidden_size": 2048,
    "ffn_hidden_size": 6144,
    "num_heads": 32,
    "num_kv_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "experts": Experts(count=128, per_token=8, ffn_hidden_size=768, renormalize=True),
}


def test_experts_that_lie_where_they_are_wanted_do_not_travel():
    """Qwen3-30B-A3B, trainer and engine both with experts over four ranks; the trainer has the rest whole."""
    arch = make_arch(**QWEN3_30B_A3B)
    plan = plan_shards(arch, make_training(arch, 1, 1, 128, ep=4), 4, 1 << 28, engine_ep=4)
    counts = count(arch, plan)
    assert counts.model == 30_532_122_624
    assert counts.model <= counts.delivered <= 1.05 * counts.model
    experts = 48 * 32 * 3 * 2048 * 768
    assert all(counts.local[rank] >= experts for rank in range(4))
    # Nothing comes from the ranks that hold copies of the attention.
    assert {source for source, _ in counts.sent} == {0}
    assert sum(counts.sent.values()) < 0.05 * counts.model


def test_shards_that_lie_where_they_are_wanted_do_not_travel():
    """Trainer and engine both two ways: nothing but the norms of the second engine rank changes ranks."""
    arch = make_arch(**QWEN3_8B)
    counts = count(arch, plan_shards(arch, make_training(arch, 2, 1, 64), 2, 1 << 28))
    norms = sum(tensor.size for tensor in hf_layout(arch) if len(tensor.shape) == 1)
    assert counts.sent == {(0, 1): norms}


def test_the_counts_are_those_of_the_moves():
    arch = make_arch()
    plan = plan_whole(arch, make_training(arch, 2, 2), assemblers=[0], limit=100)
    counts = count(arch, plan)
    by_rank: Counter[int] = Counter()
    for bucket in plan.buckets:
        for rank in range(4):
            by_rank[rank] += sum(move.size for _, move in bucket.moves_from(rank))
    assert counts.local == {0: by_rank[0]}
    assert counts.sent == {(rank, 0): by_rank[rank] for rank in (1, 2, 3)}
    assert sum(by_rank.values()) == counts.model == counts.delivered
    assert counts.largest_bucket == max(bucket.size for bucket in plan.buckets)


def test_whole_tensors_are_dealt_out_evenly():
    arch = make_arch(**QWEN3_8B)
    training = make_training(arch, 4, 1, 128)
    plan = plan_whole(arch, training, range(4), 1 << 28)
    load = Counter[int]()
    for bucket in plan.buckets:
        load[bucket.assembler] += bucket.size
    # Greedy dealing is off by at most one tensor, and the largest is an embedding.
    assert max(load.values()) - min(load.values()) <= 151936 * 4096


def test_a_plan_can_be_read():
    arch = make_arch(num_layers=1)
    plan = plan_shards(arch, make_training(arch, 2, 1), 1, 10_000)
    text = format_plan(plan)
    assert "bucket 0 of lane 0 (assembled by rank 0): 2,298 elements" in text
    assert "  model.layers.0.self_attn.qkv_proj.weight [24, 12] at 768" in text
    # The second rank's only key head: after its six query rows there; after all twelve and one key head here.
    assert "    rank 1 decoder.layers.0.self_attention.linear_qkv.weight[6:9, 0:12] -> [15:18, 0:12]" in text
    summary = format_counts(count(arch, plan), element_size=2**20)
    assert "rank 1 -> rank 0" in summary and "rank 0, its own" in summary


@pytest.mark.parametrize(
    ("sizes", "engine_tp", "words"),
    [
        ({"num_heads": 4}, 3, "does not divide the model's 4 attention heads"),
        ({"num_heads": 6, "ffn_hidden_size": 8}, 3, "does not divide the model's 8 feed-forward units"),
        ({"num_heads": 6, "num_kv_heads": 3, "experts": EXPERTS}, 3, "does not divide the 4 feed-forward"),
        (
            {"num_heads": 12, "num_kv_heads": 3, "ffn_hidden_size": 8},
            2,
            "2 and the model's 3 key/value heads: one must be a multiple of the other",
        ),
    ],
)
def test_an_impossible_engine_layout_is_refused(sizes, engine_tp, words):
    with pytest.raises(ConfigError, match=words):
        sglang_layout(make_arch(**sizes), 0, engine_tp)


@pytest.mark.parametrize(("experts", "engine_ep"), [(EXPERTS, 4), (None, 2)])
def test_an_impossible_expert_parallel_size_of_the_engine_is_refused(experts, engine_ep):
    arch = make_arch(num_heads=4, num_kv_heads=4, experts=experts)
    with pytest.raises(ConfigError, match=f"expert parallel size {engine_ep} does not divide"):
        sglang_layout(arch, 0, 2, engine_ep)


def test_a_bucket_of_nothing_is_refused():
    arch = make_arch()
    with pytest.raises(ConfigError, match="a bucket of 0 elements holds nothing"):
        plan_shards(arch, make_training(arch, 1, 1), 1, 0)


def test_the_installed_sglang_pads_the_vocabulary_as_assumed():
    assert facts()["vocab_multiple"] == SGLANG_VOCAB_MULTIPLE
    assert facts()["padded_130"] == 192
