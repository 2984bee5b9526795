"""Packed rows and the index maps that attention uses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.model.packing import TokenSplit, pack_tokens, packed_sequences

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


SPLITS = [TokenSplit(0, cp, shares) for cp in (1, 2, 4) for shares in (1, 2, 3)]


@settings(deadline=None)
@given(lengths=LENGTHS, split=st.sampled_from(SPLITS))
def test_padding_is_what_the_split_needs_and_no_more(lengths, split):
    padded = split.padded(lengths)
    assert sum(padded) % split.row_multiple == 0
    assert all(length % split.sequence_multiple == 0 for length in padded)
    assert all(
        0 <= got - want < split.sequence_multiple for got, want in zip(padded[:-1], lengths, strict=False)
    )
    assert 0 <= padded[-1] - lengths[-1] < split.sequence_multiple + split.row_multiple
    if split.cp_size * split.shares == 1:
        assert padded == lengths


@settings(deadline=None)
@given(lengths=LENGTHS, cp=st.sampled_from([2, 4]))
def test_context_parallel_ranks_share_every_sequence(lengths, cp):
    """Each holds an early and a late chunk; together they hold every row once, in equal numbers."""
    padded = TokenSplit(0, cp).padded(lengths)
    rows = [TokenSplit(rank, cp).rows(padded) for rank in range(cp)]
    assert sorted(torch.cat(rows).tolist()) == list(range(sum(padded)))
    assert {len(part) for part in rows} == {sum(padded) // cp}
    chunk = padded[0] // (2 * cp)
    for rank, part in enumerate(rows):
        own = [*range(rank * chunk, (rank + 1) * chunk)]
        own += [*range((2 * cp - 1 - rank) * chunk, (2 * cp - rank) * chunk)]
        assert part[: 2 * chunk].tolist() == own


def test_a_part_of_a_row_has_its_own_tokens_and_positions():
    packed = pack_tokens([[5, 6, 7], [8, 9, 10, 11, 12]], TokenSplit(1, 2))
    # padded to [5 6 7 .] and [8 9 10 11 12 . . .]; rank 1 of 2 has the second and third quarter of each
    assert packed.tokens_1T.tolist() == [[6, 7, 10, 11, 12, 0]]
    assert packed.position_ids_1T.tolist() == [[1, 2, 2, 3, 4, 5]]
    assert packed.packed_seq_params.cu_seqlens_q.tolist() == [0, 4, 12]
    assert (packed.starts, packed.lengths, packed.padded) == ((0, 4), (3, 5), 12)


def test_equal_lengths_are_one_unpadded_call():
    (gather_BL,) = packed_sequences([4, 4, 4]).buckets.gather_BL
    assert gather_BL.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
