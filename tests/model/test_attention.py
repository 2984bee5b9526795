"""The attention module against a float64 softmax written out, values and gradients."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.model.attention import CausalAttention
from megatron_srpo.model.packing import packed_sequences

CONFIG = SimpleNamespace(context_parallel_size=1, attention_dropout=0.0)


def _module(scale: float | None = None) -> CausalAttention:
    return CausalAttention(CONFIG, 1, None, "self", softmax_scale=scale)


def dense_reference(
    q_TND: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, lengths: list[int], scale: float
) -> torch.Tensor:
    """Softmax over the keys at or before each query in its own sequence, head by head, in float64."""
    q, k, v = (x.double() for x in (q_TND, k_TKD, v_TKD))
    repeat = q.size(1) // k.size(1)
    outs, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        heads = []
        for head in range(q.size(1)):
            scores = q[rows, head] @ k[rows, head // repeat].T * scale
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v[rows, head // repeat])
        outs.append(torch.stack(heads, 1))
        start += length
    return torch.cat(outs).flatten(1)


def _random(lengths: list[int], heads: int, kv_heads: int, dim: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(sum(lengths), n, dim) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (8, 2)]),
    dim=st.sampled_from([8, 24]),
)
def test_packed_attention_equals_the_dense_reference(lengths, heads, dim):
    inputs = _random(lengths, *heads, dim)
    out = _module()(*inputs, packed_seq_params=packed_sequences(lengths))
    expected = dense_reference(*inputs, lengths, dim**-0.5)
    # fp32 rounding of sums of at most 40 terms of size 1: 40 * 6e-8, with some room
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=0)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    references = torch.autograd.grad((expected * weight).sum(), inputs)
    for got, want in zip(gradients, references, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_dense_batches_equal_packed_rows():
    # [S, B, N, D] with two sequences of 6 against the same two packed
    packed = _random([6, 6], 4, 2, 8)
    dense = [x.view(2, 6, *x.shape[1:]).transpose(0, 1) for x in packed]
    expected = _module()(*packed, packed_seq_params=packed_sequences([6, 6]))
    out_SBF = _module()(*dense)
    assert out_SBF.shape == (6, 2, 32)
    torch.testing.assert_close(out_SBF.transpose(0, 1).flatten(0, 1), expected)


def test_softmax_scale_is_used():
    inputs = _random([5], 2, 1, 8)
    out = _module(scale=0.9)(*inputs, packed_seq_params=packed_sequences([5]))
    torch.testing.assert_close(out.double(), dense_reference(*inputs, [5], 0.9), atol=5e-6, rtol=0)


def test_a_sequence_does_not_feel_its_neighbours():
    q, k, v = _random([4, 9, 3], 2, 2, 8)
    before = _module()(q, k, v, packed_seq_params=packed_sequences([4, 9, 3]))
    with torch.no_grad():
        k[4:13], v[4:13] = 100.0, -100.0
    after = _module()(q, k, v, packed_seq_params=packed_sequences([4, 9, 3]))
    assert torch.equal(before[:4], after[:4]) and torch.equal(before[13:], after[13:])
    assert not torch.equal(before[4:13], after[4:13])


def test_bfloat16_stays_bfloat16():
    inputs = [x.bfloat16() for x in _random([5, 3], 2, 1, 8)]
    out = _module()(*inputs, packed_seq_params=packed_sequences([5, 3]))
    assert out.dtype == torch.bfloat16
    expected = dense_reference(*inputs, [5, 3], 8**-0.5)
    torch.testing.assert_close(out.double(), expected, atol=0.03, rtol=0)  # 8 bits of values of size 2


def test_what_it_cannot_do_is_asserted():
    inputs = _random([2], 1, 1, 8)
    with pytest.raises(AssertionError, match="attention dropout"):
        CausalAttention(SimpleNamespace(context_parallel_size=1, attention_dropout=0.1), 1, None, "self")
    with pytest.raises(AssertionError, match="only the causal mask"):
        _module()(*inputs, torch.ones(2, 2, dtype=torch.bool), packed_seq_params=packed_sequences([2]))
    from megatron_srpo.model.megatron_core import PackedSeqParams

    with pytest.raises(AssertionError, match="index maps"):
        _module()(*inputs, packed_seq_params=PackedSeqParams(qkv_format="thd"))
