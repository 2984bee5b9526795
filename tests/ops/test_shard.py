"""Geometry of vocabulary shards and their collectives."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops import VocabShard
from megatron_srpo.ops.shard import log_softmax_columns, math_dtype, row_max
from tests.ranks import run_ranks


def geometry(rank: int, world: int, vocab_size: int, padded_size: int) -> tuple[int, ...]:
    shard = VocabShard(dist.group.WORLD, vocab_size, padded_size)
    dist.barrier()  # a rank that communicates nothing must not leave while another one still connects
    return shard.rank, shard.world, shard.start, shard.stop, shard.local_size, shard.valid_local


def test_four_ranks_cut_the_padded_vocabulary_in_order() -> None:
    assert run_ranks(4, geometry, 10, 16) == [
        (0, 4, 0, 4, 4, 4),
        (1, 4, 4, 8, 4, 4),
        (2, 4, 8, 12, 4, 2),
        (3, 4, 12, 16, 4, 0),
    ]


def test_no_group_is_a_group_of_one() -> None:
    shard = VocabShard(None, 10, 16)
    assert (shard.rank, shard.world, shard.start, shard.stop) == (0, 1, 0, 16)
    assert (shard.local_size, shard.valid_local) == (16, 10)


def none_inside_a_default_group(rank: int, world: int) -> tuple[int, float]:
    shard = VocabShard(None, 4, 4)
    value = shard.sum_(torch.tensor([1.0 + rank])).item()
    dist.barrier()
    return shard.world, value


def test_no_group_ignores_the_default_group() -> None:
    assert run_ranks(2, none_inside_a_default_group) == [(1, 1.0), (1, 2.0)]


@pytest.mark.parametrize(
    ("vocab_size", "padded_size", "words"),
    [(0, 4, "vocab_size 0"), (9, 8, "padded_size 8"), (-1, -1, "vocab_size -1")],
)
def test_sizes_that_contradict_each_other_are_refused(vocab_size: int, padded_size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VocabShard(None, vocab_size, padded_size)


def refusal(rank: int, world: int, vocab_size: int, padded_size: int) -> str:
    with pytest.raises(ConfigError) as caught:
        VocabShard(dist.group.WORLD, vocab_size, padded_size)
    dist.barrier()
    return str(caught.value)


def test_padded_size_must_divide_by_the_group() -> None:
    for message in run_ranks(2, refusal, 10, 11):
        assert "padded_size 11" in message and "2 ranks" in message and "12" in message


def shard_of_a_subgroup(rank: int, world: int) -> str:
    group = dist.new_group([0])
    try:
        return f"world {VocabShard(group, 4, 4).world}"
    except ConfigError as error:
        return str(error)
    finally:
        dist.barrier()


def test_a_process_outside_the_group_is_refused() -> None:
    member, stranger = run_ranks(2, shard_of_a_subgroup)
    assert member == "world 1"
    assert "not in it" in stranger


def reductions(rank: int, world: int) -> tuple[list[float], list[float], list[list[int]], bool]:
    shard = VocabShard(dist.group.WORLD, world, world)
    values = torch.tensor([float(rank), -float(rank)])
    total, largest = shard.sum_(values.clone()), shard.max_(values.clone())
    same = shard.sum_(values) is values
    gathered = shard.gather(torch.tensor([[rank, 10 + rank]] * 2))
    return total.tolist(), largest.tolist(), gathered.tolist(), same


def test_collectives_sum_take_the_maximum_and_gather_in_rank_order() -> None:
    for total, largest, gathered, in_place in run_ranks(4, reductions):
        assert total == [6.0, -6.0]
        assert largest == [3.0, 0.0]
        assert gathered == [[0, 10, 1, 11, 2, 12, 3, 13]] * 2
        assert in_place


def test_collectives_of_a_group_of_one_change_nothing() -> None:
    shard, values = VocabShard(None, 4, 4), torch.tensor([[1.0, -2.0]])
    assert shard.sum_(values) is values and shard.max_(values) is values and shard.gather(values) is values
    assert values.tolist() == [[1.0, -2.0]]


def located(rank: int, world: int, ids: list[int]) -> tuple[list[int], list[bool], list[bool], int]:
    shard = VocabShard(dist.group.WORLD, 5, 8)
    local, owned, real = shard.locate(torch.tensor(ids))
    dist.barrier()
    assert ((local >= 0) & (local < shard.local_size)).all()
    return (local + shard.start).tolist(), owned.tolist(), real.tolist(), shard.start


def test_every_real_id_has_exactly_one_owner_and_padding_none() -> None:
    ids = [-100, -1, 0, 3, 4, 5, 7, 8, 1000]
    results = run_ranks(2, located, ids)
    owners = [sum(owned[i] for _, owned, _, _ in results) for i in range(len(ids))]
    assert owners == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    for global_ids, owned, real, _ in results:
        assert real == [0 <= i < 5 for i in ids]
        assert all(found == i for found, mine, i in zip(global_ids, owned, ids, strict=True) if mine)


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 3))
def test_padding_is_put_back_where_valid_took_it(vocab_size: int, padding: int, tokens: int) -> None:
    shard = VocabShard(None, vocab_size, vocab_size + padding)
    logits = torch.randn(tokens, shard.local_size)
    back = shard.with_padding(shard.valid(logits))
    assert back.shape == logits.shape
    assert torch.equal(back[:, :vocab_size], logits[:, :vocab_size])
    assert not back[:, vocab_size:].any()


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 2, 6)])
def test_logits_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(tokens, 6\)"):
        VocabShard(None, 5, 6).check_shapes(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 1, 1)])
def test_ids_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one row of ids per token"):
        VocabShard(None, 5, 6).check_shapes(torch.zeros(2, 6), torch.zeros(shape, dtype=torch.long))


def test_probabilities_are_computed_in_float32_unless_the_input_is_float64() -> None:
    types = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    assert [math_dtype(torch.zeros(1, dtype=item)) for item in types] == [torch.float32] * 3 + [torch.float64]


def test_largest_entry_of_no_columns_is_minus_infinity() -> None:
    assert row_max(torch.zeros(2, 0)).tolist() == [float("-inf")] * 2
    assert row_max(torch.tensor([[1.0, 3.0], [-5.0, -7.0]])).tolist() == [3.0, -5.0]


def test_log_softmax_leaves_its_inputs_alone() -> None:
    logits = torch.randn(2, 6)
    before = logits.clone()
    (log_p,) = log_softmax_columns((logits,), torch.float32, VocabShard(None, 5, 6))
    assert torch.equal(logits, before)
    torch.testing.assert_close(log_p, logits[:, :5].log_softmax(dim=-1))


def test_log_softmax_of_extreme_logits() -> None:
    (log_p,) = log_softmax_columns((torch.tensor([[1e4, -1e4]]),), torch.float32, VocabShard(None, 2, 2))
    assert log_p.tolist() == [[0.0, -2e4]]
