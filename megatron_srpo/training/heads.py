"""Heads on vocabulary shards: the policy's, and the self-teacher's (possibly a blend of two models).

Shape suffixes: H hidden size, V local vocabulary.
"""

from collections.abc import Sequence

import torch

from megatron_srpo.model.head import head_weight
from megatron_srpo.ops import LinearHead, VocabShard
from megatron_srpo.ops.shard import math_dtype


def live_head(model: torch.nn.Module, shard: VocabShard, temperature: float) -> LinearHead:
    """Return the policy's head as it is now."""
    return LinearHead(head_weight(model), shard, temperature)


def trained_head(model: torch.nn.Module, shard: VocabShard, temperature: float) -> LinearHead:
    """Return the policy's head for the loss of an optimizer step, after its gradients were cleared.

    Where Megatron-Core's DDP holds an accumulator of the right type, the head's gradient goes straight into
    it. That follows DDP's own agreement for fused weight gradients: ``grad_added_to_main_grad`` tells its
    hook that what autograd brings is empty, and ``zero_out_wgrad``, set on tied embeddings, that it is not.
    """
    weight_VH = head_weight(model)
    main_grad_VH = getattr(weight_VH, "main_grad", None)
    if main_grad_VH is None or main_grad_VH.dtype != math_dtype(weight_VH):
        return live_head(model, shard, temperature)
    weight_VH.grad_added_to_main_grad = True
    return LinearHead(weight_VH, shard, temperature, main_grad_VH=main_grad_VH)


def blended_head(models: Sequence[torch.nn.Module], shard: VocabShard, temperature: float) -> LinearHead:
    """Return a snapshot of several models' heads side by side, [V, k H].

    Together with hidden states concatenated the same way and scaled by the shares, one matrix product gives
    the blend of the models' logits. A copy, because the policy's own head moves on while the teacher's
    hidden states wait.
    """
    weights = [head_weight(model).detach() for model in models]
    return LinearHead(torch.cat(weights, dim=1), shard, temperature)
