"""Packed sequences: many token lists as one row without padding, and where each attends.

Context parallelism cuts every sequence into 2 x size equal chunks, of which rank r holds number r and number
2 x size - 1 - r: under a causal mask all ranks then have the same work. That is Megatron-Core's and
Transformer Engine's order. Sequences are padded at their ends to whole chunks, and the row to what sequence
parallelism cuts into equal parts, each of a size that FP8 products take; nothing else is padded. To the model
the padding belongs to the sequence that it follows: under a causal mask no real token sees it.

Shape suffixes: T packed tokens of this rank, B sequences of a bucket, L and K longest sequence of a bucket
on the query and on the key side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from megatron_srpo import platform
from megatron_srpo.model.megatron_core import PackedSeqParams


@dataclass(frozen=True)
class TokenSplit:
    """How the tokens of a packed row lie on the ranks of a replica.

    Attributes:
        cp_rank, cp_size: this rank's place in context parallelism.
        shares: parts into which sequence parallelism cuts what a context-parallel rank holds; 1 without it.
        alignment: what the tokens of such a part are a multiple of.
    """

    cp_rank: int = 0
    cp_size: int = 1
    shares: int = 1
    alignment: int = 1

    @property
    def sequence_multiple(self) -> int:
        """What the length of every sequence is padded to a multiple of."""
        return 1 if self.cp_size == 1 else 2 * self.cp_size

    @property
    def row_multiple(self) -> int:
        """What the length of the whole row is padded to a multiple of."""
        return math.lcm(self.sequence_multiple, self.cp_size * self.shares * self.alignment)

    def padded(self, lengths: Sequence[int]) -> list[int]:
        """Return the lengths with padding; the last sequence takes up the row's."""
        unit = self.sequence_multiple
        padded = [-(-length // unit) * unit for length in lengths]
        padded[-1] += -sum(padded) % self.row_multiple
        return padded

    def rows(self, padded: Sequence[int], cp_rank: int | None = None) -> torch.Tensor:
        """Return which rows of the whole padded row a rank (by default this one) holds, in its order."""
        if self.cp_size == 1:
            return torch.arange(sum(padded))
        rank = self.cp_rank if cp_rank is None else cp_rank
        rows, start = [], 0
        for length in padded:
            chunk = length // (2 * self.cp_size)
            for number in (rank, 2 * self.cp_size - 1 - rank):
                rows.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
            start += length
        return torch.cat(rows)


#: All tokens on every rank.
UNDIVIDED = TokenSplit()


@dataclass(frozen=True)
class BucketKeys:
    """The keys of a bucket where they come from all context-parallel ranks.

    Attributes:
        gather_BK: rows of the ranks' keys one after the other.
        allowed_BLK: whether a query sees a key.
    """

    gather_BK: torch.Tensor
    allowed_BLK: torch.Tensor


@dataclass(frozen=True)
class AttentionBuckets:
    """Index maps between packed rows and dense batches of sequences of similar length.

    Attributes:
        gather_BL: per bucket, the packed row of every (sequence, position). Positions past a sequence's end
            repeat its first row: under a causal mask no real token sees them, and their output is not read.
        return_T: for every packed row, its place among all buckets' flattened rows.
        keys: with context parallelism, the keys of each bucket; without, queries and keys are the same rows.
    """

    gather_BL: tuple[torch.Tensor, ...]
    return_T: torch.Tensor
    keys: tuple[BucketKeys, ...] | None = None


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron-Core's description of a packed row, with what the local attention makes its index maps of.

    Transformer Engine's attention is handed the fields of the base class alone.
    """

    lengths: tuple[int, ...] = ()
    split: TokenSplit = UNDIVIDED

    @cached_property
    def buckets(self) -> AttentionBuckets:
        """The index maps, made when the first layer asks for them and shared by all."""
        return _attention_buckets(self.lengths, self.split, platform.device())


@dataclass(frozen=True)
class PackedTokens:
    """One micro-batch for the model: ``model(tokens_1T, position_ids_1T, None, packed_seq_params=...)``.

    Attributes:
        lengths: of the sequences, without padding.
        starts: where each begins in the whole padded row.
        rows_T: which rows of the whole padded row this rank holds.
        padded: length of the whole padded row.
    """

    tokens_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    packed_seq_params: PackedSequences
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    rows_T: torch.Tensor
    padded: int


def pack_tokens(sequences: Sequence[Sequence[int]], split: TokenSplit = UNDIVIDED) -> PackedTokens:
    """Concatenate token lists (none empty) into one row, and put this rank's part of it on its device."""
    if not sequences or not all(sequences):
        raise ValueError("pack_tokens needs at least one sequence, and every sequence at least one token")
    lengths = [len(sequence) for sequence in sequences]
    padded = split.padded(lengths)
    rows_T, device = split.rows(padded), platform.device()
    positions = torch.cat([torch.arange(length) for length in padded])
    tokens = torch.zeros(sum(padded), dtype=torch.long)
    starts = [0, *accumulate(padded)][:-1]
    for start, sequence in zip(starts, sequences, strict=True):
        tokens[start : start + len(sequence)] = torch.tensor(sequence)
    return PackedTokens(
        tokens_1T=tokens[rows_T][None].to(device),
        position_ids_1T=positions[rows_T][None].to(device),
        packed_seq_params=packed_sequences(padded, split),
        lengths=tuple(lengths),
        starts=tuple(starts),
        rows_T=rows_T,
        padded=sum(padded),
    )


def packed_sequences(lengths: Sequence[int], split: TokenSplit = UNDIVIDED) -> PackedSequences:
    """Describe sequences of these padded lengths, packed in this order, to Megatron-Core."""
    device = platform.device()
    boundaries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
        lengths=tuple(lengths),
        split=split,
    )


def _attention_buckets(lengths: Sequence[int], split: TokenSplit, device: torch.device) -> AttentionBuckets:
    own = [length // split.cp_size for length in lengths]
    starts = [0, *accumulate(own)]
    gathers, keys, place_T, offset = [], [], torch.empty(sum(own), dtype=torch.long), 0
    for members in _group_by_length(own):
        gather_BL, real_BL = _dense([own[i] for i in members], [starts[i] for i in members])
        place_BL = offset + torch.arange(gather_BL.numel()).view_as(gather_BL)
        place_T[gather_BL[real_BL]] = place_BL[real_BL]
        gathers.append(gather_BL.to(device))
        offset += gather_BL.numel()
        if split.cp_size > 1:
            keys.append(_bucket_keys(lengths, split, members, gather_BL, device))
    return AttentionBuckets(tuple(gathers), place_T.to(device), tuple(keys) or None)


def _dense(lengths: Sequence[int], starts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [B, L] of sequences that begin at ``starts``, and which of them are within the sequence."""
    length_B1, start_B1 = torch.tensor(lengths)[:, None], torch.tensor(starts)[:, None]
    position_L = torch.arange(max(lengths))
    real_BL = position_L < length_B1
    return torch.where(real_BL, start_B1 + position_L, start_B1), real_BL


def _bucket_keys(
    lengths: Sequence[int],
    split: TokenSplit,
    members: Sequence[int],
    gather_BL: torch.Tensor,
    device: torch.device,
) -> BucketKeys:
    starts = [0, *accumulate(lengths)]
    rows_BK, _ = _dense([lengths[i] for i in members], [starts[i] for i in members])
    by_rank = torch.cat([split.rows(lengths, rank) for rank in range(split.cp_size)])
    place = torch.empty_like(by_rank)
    place[by_rank] = torch.arange(len(by_rank))
    first_B1 = torch.tensor([starts[i] for i in members])[:, None]
    position_BL = split.rows(lengths)[gather_BL] - first_B1
    allowed_BLK = torch.arange(rows_BK.shape[1]) <= position_BL[:, :, None]
    return BucketKeys(place[rows_BK].to(device), allowed_BLK.to(device))


def _group_by_length(lengths: list[int]) -> list[list[int]]:
    """Group sequence indices so that none is shorter than half its group's longest.

    Padding then at most doubles the work, in at most log2(longest) attention calls.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and 2 * lengths[index] >= lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
