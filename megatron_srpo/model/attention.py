"""Causal attention for the local layer spec, by PyTorch's scaled-dot-product attention.

Shape suffixes: S positions, B sequences, N heads (query or key/value), D head size, T packed tokens, L and K
longest sequence of a bucket on the query and on the key side.

With context parallelism the keys and values of all ranks are gathered for each layer: simple, and the same
in any layout.
"""

from typing import Any

import torch
import torch.nn.functional as F

from megatron_srpo.model.megatron_core import (
    PackedSeqParams,
    ProcessGroupCollection,
    TransformerConfig,
    gather_from_sequence_parallel_region,
)
from megatron_srpo.model.packing import AttentionBuckets, PackedSequences


class CausalAttention(torch.nn.Module):
    """Megatron-Core ``core_attention``: grouped queries, causal, dense [S, B, N, D] or packed [T, N, D]."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        assert config.attention_dropout == 0.0, "attention dropout is not supported by this attention"
        self.scale = softmax_scale
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 and pg_collection else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Return the context of every query: [S, B, N * D], or [T, N * D] for packed rows."""
        assert attention_mask is None and attention_bias is None, "only the causal mask is supported"
        if packed_seq_params is None:
            assert self.cp_group is None, "context parallelism needs packed rows"
            out_BSND = self._attend(*(x.transpose(0, 1) for x in (query, key, value)))
            return out_BSND.transpose(0, 1).flatten(2)
        assert isinstance(packed_seq_params, PackedSequences), (
            "packed rows need the index maps of packed_sequences()"
        )
        return self._attend_packed(query, key, value, packed_seq_params.buckets)

    def _attend_packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, buckets: AttentionBuckets
    ) -> torch.Tensor:
        if self.cp_group is not None:
            key, value = (gather_from_sequence_parallel_region(x, group=self.cp_group) for x in (key, value))
        outs = [
            self._attend_bucket(query, key, value, buckets, number)
            for number in range(len(buckets.gather_BL))
        ]
        padded = outs[0] if len(outs) == 1 else torch.cat(outs)
        return padded.index_select(0, buckets.return_T).flatten(1)

    def _attend_bucket(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        buckets: AttentionBuckets,
        number: int,
    ) -> torch.Tensor:
        gather_BL = buckets.gather_BL[number]
        gather_BK, allowed_BLK = gather_BL, None
        if buckets.keys is not None:
            gather_BK, allowed_BLK = buckets.keys[number].gather_BK, buckets.keys[number].allowed_BLK
        inputs = (_rows(query, gather_BL), _rows(key, gather_BK), _rows(value, gather_BK))
        return self._attend(*inputs, allowed_BLK).flatten(0, 1)

    def _attend(
        self,
        query_BLND: torch.Tensor,
        key_BKND: torch.Tensor,
        value_BKND: torch.Tensor,
        allowed_BLK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query_BLND, key_BKND, value_BKND))
        out_BNLD = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if allowed_BLK is None else allowed_BLK[:, None],
            is_causal=allowed_BLK is None,
            scale=self.scale,
            enable_gqa=query.size(1) != key.size(1),
        )
        return out_BNLD.transpose(1, 2)


def _rows(x_TND: torch.Tensor, gather_BL: torch.Tensor) -> torch.Tensor:
    """Gather packed rows into [B, L, N, D]."""
    return x_TND.index_select(0, gather_BL.flatten()).unflatten(0, gather_BL.shape)
