"""Heads on vocabulary shards: the policy's, and the self-teacher's (possibly a blend of two models).

Shape suffixes: H hidden size, V local vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_srpo.model.head import head_weight
from megatron_srpo.ops import LinearHead, VocabShard
from megatron_srpo.ops.shard import math_dtype


@dataclass(frozen=True)
class HeadForm:
    """How hidden states become logits: the same for policy, teacher and reference.

    Attributes:
        shard: this rank's part of the vocabulary.
        temperature: of the rollouts; all logits are divided by it.
        fp32: multiply in fp32 whatever the type of the weights.
    """

    shard: VocabShard
    temperature: float
    fp32: bool = False

    def head(self, weight_VH: torch.Tensor, main_grad_VH: torch.Tensor | None = None) -> LinearHead:
        """Return the head with this weight."""
        return LinearHead(weight_VH, self.shard, self.temperature, self.fp32, main_grad_VH)


def live_head(model: torch.nn.Module, form: HeadForm) -> LinearHead:
    """Return the policy's head as it is now."""
    return form.head(head_weight(model))


def trained_head(model: torch.nn.Module, form: HeadForm) -> LinearHead:
    """Return the policy's head for the loss of an optimizer step, after its gradients were cleared.

    Where Megatron-Core's DDP holds an accumulator of the right type, the head's gradient goes straight into
    it. That follows DDP's own agreement for fused weight gradients: ``grad_added_to_main_grad`` tells its
    hook that what autograd brings is empty, and ``zero_out_wgrad``, set on tied embeddings, that it is not.
    """
    weight_VH = head_weight(model)
    main_grad_VH = getattr(weight_VH, "main_grad", None)
    if main_grad_VH is None or main_grad_VH.dtype != math_dtype(weight_VH):
        return live_head(model, form)
    weight_VH.grad_added_to_main_grad = True
    return form.head(weight_VH, main_grad_VH)


def blended_head(models: Sequence[torch.nn.Module], form: HeadForm) -> LinearHead:
    """Return a snapshot of several models' heads side by side, [V, k H].

    Together with hidden states concatenated the same way and scaled by the shares, one matrix product gives
    the blend of the models' logits. A copy, because the policy's own head moves on while the teacher's
    hidden states wait.
    """
    weights = [head_weight(model).detach() for model in models]
    return form.head(torch.cat(weights, dim=1))
