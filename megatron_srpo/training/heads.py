"""Heads on vocabulary shards: the policy's, and the self-teacher's (possibly a blend of two models).

Shape suffixes: H hidden size, V local vocabulary.
"""

from collections.abc import Sequence

import torch

from megatron_srpo.model.head import head_weight
from megatron_srpo.ops import LinearHead, VocabShard


def live_head(model: torch.nn.Module, shard: VocabShard, temperature: float) -> LinearHead:
    """Return the head whose weight receives gradients."""
    return LinearHead(head_weight(model), shard, temperature)


def blended_head(models: Sequence[torch.nn.Module], shard: VocabShard, temperature: float) -> LinearHead:
    """Return a snapshot of several models' heads side by side, [V, k H].

    Together with hidden states concatenated the same way and scaled by the shares, one matrix product gives
    the blend of the models' logits. A copy, because the policy's own head moves on while the teacher's
    hidden states wait.
    """
    weights = [head_weight(model).detach() for model in models]
    return LinearHead(torch.cat(weights, dim=1).clone(), shard, temperature)
