"""A key-value cache for batched decoding: written in place, grown in steps, shrunk when rows finish.

Shape suffixes: B rows, H key-value heads, L columns, D head dimension.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: Name under which :func:`grouped_attention` is registered with transformers.
ATTENTION = "grouped_decode_sdpa"

#: Columns added when a buffer is full. Appending by concatenation would copy the whole cache at every token.
GROWTH = 64


class BufferedLayer(DynamicLayer):
    """The cache of one layer. ``keys`` and ``values`` are views of the filled columns of larger buffers."""

    def __init__(self, rows: int, columns: int, like_BHLD: Tensor) -> None:
        """Hold ``columns`` columns of zeros for ``rows`` rows; heads, D and type as in ``like_BHLD``.

        Zeros, not uninitialised memory: a masked column is multiplied by zero, and zero times NaN is NaN.
        """
        super().__init__()
        _, heads, _, head_dim = like_BHLD.shape
        self.dtype, self.device = like_BHLD.dtype, like_BHLD.device
        self._keys = like_BHLD.new_zeros(rows, heads, columns + GROWTH, head_dim)
        self._values = torch.zeros_like(self._keys)
        self.is_initialized = True
        self._show(columns)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns of shape [B, H, new, D]; return all filled columns."""
        start, new = self.keys.shape[2], key_states.shape[2]
        if start + new > self._keys.shape[2]:
            self._keys, self._values = (
                F.pad(buffer, (0, 0, 0, max(new, GROWTH))) for buffer in (self._keys, self._values)
            )
        self._keys[:, :, start : start + new] = key_states
        self._values[:, :, start : start + new] = value_states
        self._show(start + new)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows ``indices``."""
        columns = self.keys.shape[2]
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._show(columns)

    def _show(self, columns: int) -> None:
        self.keys, self.values = self._keys[:, :, :columns], self._values[:, :, :columns]


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does, but decode without repeating keys and values per query head.

    With one new token, the query heads that share a key-value head become the query *rows* of one attention
    problem. On one CPU core, 256 rows, 4 query and 2 key-value heads, 100 columns: 1.2 ms instead of 15 ms.

    Args:
        query: [B, query heads, new, D].
        key, value: [B, H, L, D].
        attention_mask: additive or bool, [B, 1, new, L].

    Returns:
        [B, new, query heads, D] and None (no attention weights).
    """
    rows, heads, new, head_dim = query.shape
    if new > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], head_dim)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, head_dim), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
