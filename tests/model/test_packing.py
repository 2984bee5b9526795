"""Packed rows and the index maps that attention uses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.model.packing import pack_tokens, packed_sequences

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=30)


def test_pack_tokens_concatenates_and_restarts_positions():
    packed = pack_tokens([[5, 6, 7], [8], [9, 10]])
    assert packed.tokens_1T.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert packed.position_ids_1T.tolist() == [[0, 1, 2, 0, 0, 1]]
    params = packed.packed_seq_params
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, 3, 4, 6]
    assert params.cu_seqlens_q.dtype == torch.int32  # what Megatron-Core's and TE's kernels take
    assert params.max_seqlen_q == params.max_seqlen_kv == 3


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_pack_tokens_refuses_emptiness(sequences):
    with pytest.raises(ValueError, match="at least one"):
        pack_tokens(sequences)


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_index_maps_bring_every_token_to_its_sequence_and_back(lengths):
    params = packed_sequences(lengths)
    starts = params.cu_seqlens_q.tolist()
    seen = []
    for gather_BL in params.buckets.gather_BL:
        for row in gather_BL.tolist():
            sequence = starts.index(row[0])
            length = lengths[sequence]
            assert row[:length] == list(range(starts[sequence], starts[sequence] + length))
            assert set(row[length:]) <= {row[0]}  # padding repeats the sequence's own first token
            seen.append(sequence)
    assert sorted(seen) == list(range(len(lengths)))
    flat = torch.cat([gather_BL.flatten() for gather_BL in params.buckets.gather_BL])
    assert flat[params.buckets.return_T].tolist() == list(range(sum(lengths)))


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_padding_at_most_doubles_the_tokens_in_few_calls(lengths):
    gathers = packed_sequences(lengths).buckets.gather_BL
    assert sum(gather.numel() for gather in gathers) <= 2 * sum(lengths)
    assert len(gathers) <= max(lengths).bit_length()


def test_equal_lengths_are_one_unpadded_call():
    (gather_BL,) = packed_sequences([4, 4, 4]).buckets.gather_BL
    assert gather_BL.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
