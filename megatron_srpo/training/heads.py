"""Heads on vocabulary shards: the policy's, and the self-teacher's (possibly a blend of two models).

Shape suffixes: R response tokens, H hidden size, V local vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_srpo.model.head import head_weight
from megatron_srpo.ops import LogProbs, VocabShard, vocab_parallel_log_prob, vocab_parallel_logits


@dataclass(frozen=True)
class Head:
    """A weight [V, H], the shard of the vocabulary that it covers, and the sampling temperature."""

    weight_VH: Tensor
    shard: VocabShard
    temperature: float

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """Return this shard's logits [R, V] in fp32, divided by the temperature."""
        return vocab_parallel_logits(hidden_RH, self.weight_VH, self.shard, self.temperature)

    def scores(self, logits_RV: Tensor, target_R: Tensor, entropy: bool = True) -> LogProbs:
        """Return the log-prob of each target token, and the exact entropy if asked for."""
        return vocab_parallel_log_prob(logits_RV, target_R, self.shard, entropy=entropy)


def live_head(model: torch.nn.Module, shard: VocabShard, temperature: float) -> Head:
    """Return the head whose weight receives gradients."""
    return Head(head_weight(model), shard, temperature)


def blended_head(models: Sequence[torch.nn.Module], shard: VocabShard, temperature: float) -> Head:
    """Return a snapshot of several models' heads side by side, [V, k H].

    Together with hidden states concatenated the same way and scaled by the shares, one matrix product gives
    the blend of the models' logits. A copy, because the policy's own head moves on while the teacher's
    hidden states wait.
    """
    weights = [head_weight(model).detach() for model in models]
    return Head(torch.cat(weights, dim=1).clone(), shard, temperature)
