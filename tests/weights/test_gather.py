"""Gathering: every rank gets the Hugging Face tensors back, in few and bounded exchanges."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from tests.model.tiny import EXPERTS, load_reference, stored_tensors, write_random_qwen3
from tests.ranks import run_ranks
from tests.weights.reference import EXPERTS as EXPERTS_OF_REFERENCE
from tests.weights.reference import make_arch
from tests.weights.test_table import layouts


def gathered(
    rank: int,
    world: int,
    folder: str,
    tp: int,
    pp: int | PipelineStages,
    dtype: torch.dtype | None,
    ep: int = 1,
) -> list[tuple[str, torch.Tensor]]:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.gather import hf_tensors
    from megatron_srpo.weights.load import load_hf

    groups = initialize_parallel(tp, pp, expert=ep)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, vocab_multiple=16)
    load_hf(model, arch, folder, groups)
    return list(hf_tensors(model, arch, groups, dtype))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2)])
def test_every_rank_gets_every_tensor_bit_for_bit_in_the_same_order(tmp_path, tp, pp, dp, tied):
    folder = write_random_qwen3(tmp_path, vocab_size=100, tie_word_embeddings=tied)
    state = load_reference(folder).state_dict()
    expected = {name: value for name, value in state.items() if not (tied and name == "lm_head.weight")}
    for result in run_ranks(tp * pp * dp, gathered, str(folder), tp, pp, None):
        assert [name for name, _ in result] == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in result)


@pytest.mark.parametrize(
    ("stages", "ranks"),
    [(PipelineStages(2, 2), 2), (PipelineStages(2, 1, first=1), 2), (PipelineStages(3, 1, last=2), 3)],
    ids=str,
)
def test_stages_of_several_chunks_or_sizes_hand_out_every_tensor(tmp_path, stages, ranks):
    folder = write_random_qwen3(tmp_path, num_hidden_layers=4, vocab_size=100)
    expected = load_reference(folder).state_dict()
    for result in run_ranks(ranks, gathered, str(folder), 1, stages, None):
        assert [name for name, _ in result] == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in result)


@pytest.mark.parametrize(("tp", "pp", "ep", "dp"), [(1, 1, 2, 1), (2, 1, 4, 1), (4, 1, 2, 1), (1, 2, 2, 1)])
def test_every_rank_gets_every_expert(tmp_path, tp, pp, ep, dp):
    folder = write_random_qwen3(tmp_path, vocab_size=100, num_key_value_heads=4, **EXPERTS)
    expected = stored_tensors(folder)
    for result in run_ranks(max(tp, ep) * pp * dp, gathered, str(folder), tp, pp, None, ep):
        assert len(result) == len(expected)
        assert all(torch.equal(value, expected[name]) for name, value in result)


def test_tensors_can_be_converted_on_the_way(tmp_path):
    folder = write_random_qwen3(tmp_path)
    expected = load_reference(folder).state_dict()
    for result in run_ranks(2, gathered, str(folder), 2, 1, torch.bfloat16):
        assert all(torch.equal(value, expected[name].bfloat16()) for name, value in result)


def changed_after_update(rank: int, world: int, folder: str) -> list[tuple[float, float]]:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.gather import hf_tensors
    from megatron_srpo.weights.load import load_hf

    groups = initialize_parallel(2, 1)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups)
    load_hf(model, arch, folder, groups)
    before = dict(hf_tensors(model, arch, groups))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = dict(hf_tensors(model, arch, groups))
    differences = [after[name] - before[name] for name in before]
    return [(float(difference.min()), float(difference.max())) for difference in differences]


def test_nothing_is_remembered_from_an_earlier_gathering(tmp_path):
    folder = str(write_random_qwen3(tmp_path))
    for result in run_ranks(2, changed_after_update, folder):
        # x + 1 - x in fp32 is 1 up to rounding of x + 1
        assert all(abs(low - 1) < 1e-6 and abs(high - 1) < 1e-6 for low, high in result)


@settings(deadline=None)
@given(layout=layouts(), limit=st.integers(1, 200))
def test_exchanges_carry_every_element_once_within_the_limit(layout, limit):
    from megatron_srpo.weights.gather import plan_exchanges
    from megatron_srpo.weights.table import hf_shapes

    arch, tp, stages, ep, rows = layout
    counts = {name: torch.zeros(shape, dtype=torch.int) for name, shape in hf_shapes(arch).items()}
    complete: list[str] = []
    for exchange in plan_exchanges(arch, tp, stages, rows, limit, ep):
        pieces: list[Any] = [owned for sent in exchange.sent for owned in sent]
        assert {owned.place.pp_rank for owned in pieces} == {exchange.pp_rank}
        for rank, sent in enumerate(exchange.sent):
            assert all(owned.place.rank == rank for owned in sent)
            assert rank in exchange.senders or not sent
        for owned in pieces:
            assert owned.piece.source.shape == owned.piece.target.shape
            counts[owned.piece.hf_name][owned.piece.source.slices] += 1
        # one row of each rank is the least that can be sent
        widest = max(owned.piece.source.size // owned.piece.source.shape[0] for owned in pieces)
        # what travels: every sender's buffer, as long as the longest
        travelling = exchange.length * len(exchange.senders)
        assert travelling <= max(limit, max(tp, ep) * widest)
        for name in exchange.complete:
            assert bool((counts[name] == 1).all()), "complete only when every element has come"
        complete += exchange.complete
    assert complete == list(hf_shapes(arch))


def test_a_small_model_is_one_exchange_per_stage():
    from megatron_srpo.weights.gather import plan_exchanges

    # the rollout engine is fed after every step: collectives must not be the cost
    arch = make_arch(num_layers=4)
    one, two = PipelineStages(), PipelineStages(2)
    assert len(plan_exchanges(arch, 2, one, 8)) == 1
    assert len(plan_exchanges(arch, 2, two, 8)) == 2
    assert len(plan_exchanges(make_arch(num_layers=4, tied_embeddings=True), 1, two, 16)) == 2


def test_an_expert_is_sent_by_its_owner_alone_and_whole():
    from megatron_srpo.weights.gather import plan_exchanges

    wide = dataclasses.replace(EXPERTS_OF_REFERENCE, ffn_hidden_size=1024)
    arch = make_arch(num_layers=1, hidden_size=1024, experts=wide)
    exchanges = plan_exchanges(arch, 1, PipelineStages(), 16, limit=1 << 20, ep_size=4)
    experts = [e for e in exchanges if any(".experts." in name for name in e.complete)]
    # 4 experts of 3 matrices of 2 ** 20 elements
    assert len(experts) == 12
    assert [e.senders for e in experts[:-1]] == [(n,) for n in range(4) for _ in range(3)][:-1]


def test_a_large_tensor_goes_in_parts():
    from megatron_srpo.weights.gather import EXCHANGE_ELEMENTS, plan_exchanges

    arch = make_arch(vocab_size=151_936, hidden_size=1024)
    exchanges = plan_exchanges(arch, 2, PipelineStages(), 151_936 // 2)
    sizes = [sum(owned.piece.source.size for sent in e.sent for owned in sent) for e in exchanges]
    assert max(sizes) <= EXCHANGE_ELEMENTS < arch.vocab_size * arch.hidden_size
