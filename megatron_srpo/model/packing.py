"""Packed sequences: many token lists as one row without padding, and where each attends.

Shape suffixes: T packed tokens, B sequences of a bucket, L longest sequence of a bucket.
"""

from dataclasses import dataclass, field
from itertools import accumulate

import torch

from megatron_srpo import platform
from megatron_srpo.model.megatron_core import PackedSeqParams


@dataclass(frozen=True)
class AttentionBuckets:
    """Index maps between packed rows and dense batches of sequences of similar length.

    Attributes:
        gather_BL: per bucket, the packed row of every (sequence, position). Positions past a sequence's end
            repeat its first row: under a causal mask no real token sees them, and their output is not read.
        return_T: for every packed row, its place among all buckets' flattened rows.
    """

    gather_BL: tuple[torch.Tensor, ...]
    return_T: torch.Tensor


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron-Core's description of a packed row, with the index maps that every layer shares."""

    buckets: AttentionBuckets | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class PackedTokens:
    """One micro-batch for the model: ``model(tokens_1T, position_ids_1T, None, packed_seq_params=...)``."""

    tokens_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    packed_seq_params: PackedSequences


def pack_tokens(sequences: list[list[int]]) -> PackedTokens:
    """Concatenate token lists (none empty) into one row on this rank's device."""
    if not sequences or not all(sequences):
        raise ValueError("pack_tokens needs at least one sequence, and every sequence at least one token")
    device = platform.device()
    lengths = [len(sequence) for sequence in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    return PackedTokens(tokens[None].to(device), positions[None].to(device), packed_sequences(lengths))


def packed_sequences(lengths: list[int]) -> PackedSequences:
    """Describe sequences of these lengths, packed in this order, to Megatron-Core and its attention."""
    device = platform.device()
    starts = [0, *accumulate(lengths)]
    boundaries = torch.tensor(starts, dtype=torch.int32, device=device)
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
        buckets=_attention_buckets(lengths, starts[:-1], device),
    )


def _attention_buckets(lengths: list[int], starts: list[int], device: torch.device) -> AttentionBuckets:
    gathers, place_T, offset = [], torch.empty(sum(lengths), dtype=torch.long), 0
    for members in _group_by_length(lengths):
        length_B1 = torch.tensor([lengths[i] for i in members])[:, None]
        start_B1 = torch.tensor([starts[i] for i in members])[:, None]
        position_L = torch.arange(int(length_B1.max()))
        real_BL = position_L < length_B1
        gather_BL = torch.where(real_BL, start_B1 + position_L, start_B1)
        place_BL = offset + torch.arange(gather_BL.numel()).view_as(gather_BL)
        place_T[gather_BL[real_BL]] = place_BL[real_BL]
        gathers.append(gather_BL.to(device))
        offset += gather_BL.numel()
    return AttentionBuckets(tuple(gathers), place_T.to(device))


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
