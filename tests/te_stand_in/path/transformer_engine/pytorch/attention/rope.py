"""Rotary embedding of packed rows."""

from itertools import pairwise

import torch
from torch import Tensor


def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    tensor_format: str = "sbhd",
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> Tensor:
    """Rotate [T, N, D] by the positions within each sequence. ``freqs`` is [longest, 1, 1, D], fp32."""
    assert tensor_format == "thd" and fused and not interleaved and cp_size == 1 and cu_seqlens is not None
    positions = torch.cat([torch.arange(stop - start) for start, stop in pairwise(cu_seqlens.tolist())])
    angle = freqs[positions, 0]
    half = torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], dim=-1)
    return (t * angle.cos() + half * angle.sin()).to(t.dtype)
