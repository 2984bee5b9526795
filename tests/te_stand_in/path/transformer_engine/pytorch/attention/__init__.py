"""Causal attention of packed rows."""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from transformer_engine.pytorch.linear import Module


class DotProductAttention(Module):
    """Attention in format ``thd``, sequence by sequence."""

    def __init__(
        self, num_attention_heads: int, kv_channels: int, softmax_scale: float | None = None, **_: Any
    ) -> None:
        super().__init__()
        self.scale, self.cp_comm_type = softmax_scale, None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        qkv_format: str | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
        pad_between_seqs: bool | None = None,
        num_splits: int | None = 1,
    ) -> Tensor:
        assert qkv_format == "thd" and attn_mask_type == "padding_causal" and attention_mask is None
        assert cu_seqlens_q is not None and cu_seqlens_q_padded is None
        assert query.dim() == 3 and max_seqlen_q == int(cu_seqlens_q.diff().max())
        out = query.new_empty(query.shape)
        for start, stop in pairwise(cu_seqlens_q.tolist()):
            parts = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
            one = F.scaled_dot_product_attention(*parts, is_causal=True, scale=self.scale, enable_gqa=True)
            out = out.index_copy(0, _places(start, stop, out), one[0].transpose(0, 1))
        return out.flatten(1)


def _places(start: int, stop: int, like: Tensor) -> Tensor:
    import torch

    return torch.arange(start, stop, device=like.device)
