"""Top-k over a sharded vocabulary, and logits at given ids."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops import VocabShard, vocab_parallel_gather, vocab_parallel_topk
from tests.ops import reference
from tests.ops.harness import EDGES, Case, cases, check
from tests.ranks import run_ranks


@pytest.mark.parametrize("world", [1, 2, 4])
def test_matches_the_dense_reference_in_edge_cases(world: int) -> None:
    check("gather", world, EDGES)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_matches_the_dense_reference(case: Case) -> None:
    check("gather", 1, [case])


@pytest.mark.parametrize("world", [2, 4])
@given(st.lists(cases(), min_size=4, max_size=12))
@settings(deadline=None, max_examples=4)
def test_sharded_matches_the_dense_reference(world: int, batch: list[Case]) -> None:
    check("gather", world, batch)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=60), st.data())
def test_equal_logits_are_ordered_by_smaller_id(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    logits = torch.tensor([values], dtype=torch.float32)
    found, ids = vocab_parallel_topk(logits, k, VocabShard(None, len(values), len(values)))
    assert torch.equal(ids, reference.topk_ids(logits, k))
    assert torch.equal(found, logits.gather(1, ids))


def topk_of_ties(rank: int, world: int, k: int) -> list[list[list[int]]]:
    """Ids of three kinds of rows: all equal, two levels across the shards, zeros of both signs."""
    shard = VocabShard(dist.group.WORLD, 10, 12)
    rows = torch.zeros(3, 12)
    rows[1, 1::2] = 1.0
    rows[2, ::2] = -0.0
    rows[:, 10:] = 99.0  # padding that would win
    _, ids = vocab_parallel_topk(rows[:, shard.start : shard.stop], k, shard)
    return ids.tolist()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("k", [1, 3, 7, 10])
def test_ties_across_shards_are_the_same_on_all_ranks_and_layouts(world: int, k: int) -> None:
    odd_first = [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]
    expected = [list(range(10))[:k], odd_first[:k], list(range(10))[:k]]
    assert run_ranks(world, topk_of_ties, k) == [expected] * world


def test_infinitely_unlikely_entries_come_before_padding() -> None:
    logits = torch.full((1, 6), float("-inf"))
    logits[0, 2] = 1.0
    _, ids = vocab_parallel_topk(logits, 4, VocabShard(None, 4, 6))
    assert ids.tolist() == [[2, 0, 1, 3]]


def sizes_with_a_rank_of_padding(rank: int, world: int) -> tuple[list[float], list[int]]:
    shard = VocabShard(dist.group.WORLD, 3, 8)
    whole = torch.tensor([[0.5, -1.0, 2.0] + [float("nan")] * 5])
    values, ids = vocab_parallel_topk(whole[:, shard.start : shard.stop], 3, shard)
    return values[0].tolist(), ids[0].tolist()


def test_ranks_with_fewer_than_k_entries_take_part() -> None:
    assert run_ranks(4, sizes_with_a_rank_of_padding) == [([2.0, 0.5, -1.0], [2, 0, 1])] * 4


def test_top_values_carry_no_gradient() -> None:
    values, ids = vocab_parallel_topk(torch.randn(2, 5, requires_grad=True), 2, VocabShard(None, 5, 5))
    assert not values.requires_grad and ids.dtype == torch.long


@pytest.mark.parametrize("k", [0, -1, 6, 7])
def test_k_outside_the_vocabulary_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k {k} with a vocabulary of 5"):
        vocab_parallel_topk(torch.randn(2, 8), k, VocabShard(None, 5, 8))


def test_gradcheck_with_repeated_ids() -> None:
    shard, ids = VocabShard(None, 5, 7), torch.tensor([[0, 0, 4], [1, 2, 1]])
    logits = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: vocab_parallel_gather(x, ids, shard), logits)


def test_gather_keeps_the_type_of_the_logits() -> None:
    logits = torch.randn(2, 5).bfloat16().requires_grad_()
    chosen = vocab_parallel_gather(logits, torch.tensor([[1], [4]]), VocabShard(None, 5, 5))
    chosen.sum().backward()
    assert chosen.dtype == torch.bfloat16
    assert logits.grad is not None and logits.grad.nonzero().tolist() == [[0, 1], [1, 4]]


def test_gathering_outside_the_vocabulary_gives_nan_and_no_gradient() -> None:
    logits = torch.randn(1, 7, requires_grad=True)
    chosen = vocab_parallel_gather(logits, torch.tensor([[-1, 2, 5, 7]]), VocabShard(None, 5, 7))
    assert torch.isnan(chosen).tolist() == [[True, False, True, True]]
    chosen.sum().backward()
    assert logits.grad is not None and logits.grad.nonzero().tolist() == [[0, 2]]


def test_ids_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="one row of ids per token"):
        vocab_parallel_gather(torch.zeros(2, 5), torch.tensor([1, 2]), VocabShard(None, 5, 5))
