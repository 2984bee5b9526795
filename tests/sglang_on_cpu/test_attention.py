"""Batched decoding attention against one request at a time."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_srpo.sglang_on_cpu.attention import attend, cache_slots

SLOTS = 200


def make_cache(heads: int, head: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    shape = (SLOTS, heads, head)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), generator


def one_by_one(
    queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: list[int], scale: float
) -> Tensor:
    """Plain softmax attention of each request's one query over its own slots, head by head."""
    rows = []
    group = queries.shape[1] // keys.shape[1]
    for request, length in enumerate(lengths):
        slots = table[request, :length].long()
        heads = []
        for head in range(queries.shape[1]):
            scores = keys[slots, head // group] @ queries[request, head] * scale
            heads.append(F.softmax(scores, dim=0) @ values[slots, head // group])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.sampled_from([(1, 1), (2, 1), (2, 4)]),
    st.integers(0, 1000),
)
def test_equals_one_request_at_a_time(lengths: list[int], heads: tuple[int, int], seed: int) -> None:
    """1e-5: fp32 sums of at most 20 terms of order one."""
    kv_heads, group = heads
    keys, values, generator = make_cache(kv_heads, 8, seed)
    queries = torch.randn(len(lengths), kv_heads * group, 8, generator=generator)
    table = torch.randint(0, SLOTS, (len(lengths), 20), generator=generator, dtype=torch.int32)
    slots, mask = cache_slots(table, torch.arange(len(lengths)), torch.tensor(lengths))
    found = attend(queries, keys, values, slots, mask, 0.3)
    expected = one_by_one(queries, keys, values, table, lengths, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_never_reads_the_cache_of_others() -> None:
    """A slot that holds NaN, as freed memory may, must not reach a request that does not own it."""
    keys, values, _ = make_cache(2, 4, 0)
    table = torch.zeros(2, 6, dtype=torch.int32)
    table[0, :6] = torch.arange(10, 16)
    table[1, :2] = torch.tensor([20, 21])
    keys[0], values[0] = float("nan"), float("nan")
    slots, mask = cache_slots(table, torch.tensor([0, 1]), torch.tensor([6, 2]))
    assert 0 not in slots
    assert attend(torch.ones(2, 2, 4), keys, values, slots, mask, 1.0).isfinite().all()


def test_no_mask_when_all_are_equally_long() -> None:
    table = torch.arange(12, dtype=torch.int32).view(2, 6)
    slots, mask = cache_slots(table, torch.tensor([1, 0]), torch.tensor([4, 4]))
    assert mask is None
    assert slots.tolist() == [[6, 7, 8, 9], [0, 1, 2, 3]]


def test_mask_marks_the_tokens_of_each_request() -> None:
    table = torch.arange(12, dtype=torch.int32).view(2, 6)
    slots, mask = cache_slots(table, torch.tensor([0, 1]), torch.tensor([1, 3]))
    assert slots.tolist() == [[0, 0, 0], [6, 7, 8]]
    assert mask is not None
    assert mask.tolist() == [[[[True, False, False]]], [[[True, True, True]]]]


@pytest.mark.parametrize("cache_type", [torch.float32, torch.bfloat16])
def test_output_has_the_type_of_the_queries(cache_type: torch.dtype) -> None:
    keys, values, _ = make_cache(2, 4, 3)
    slots, mask = cache_slots(torch.arange(4).view(1, 4), torch.tensor([0]), torch.tensor([4]))
    queries = torch.randn(1, 4, 4)
    found = attend(queries, keys.to(cache_type), values.to(cache_type), slots, mask, 0.5)
    assert (found.dtype, found.shape) == (torch.float32, (1, 16))


def test_value_heads_may_have_another_size() -> None:
    keys, _, generator = make_cache(2, 4, 4)
    values = torch.randn(SLOTS, 2, 6, generator=generator)
    slots, mask = cache_slots(torch.arange(3).view(1, 3), torch.tensor([0]), torch.tensor([3]))
    queries = torch.randn(1, 2, 4, generator=generator)
    expected = one_by_one(queries, keys, values, torch.arange(3).view(1, 3), [3], 0.5)
    torch.testing.assert_close(
        attend(queries, keys, values, slots, mask, 0.5), expected, rtol=1e-5, atol=1e-5
    )
