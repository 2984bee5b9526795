"""Pure tensor operations on vocabulary shards, each with an explicit process group inside a `VocabShard`.

No operation knows Megatron. Contract of all gradients: grad_output is the same on all ranks of the group
(they compute the same loss), and what a rank gets for its own logits is exact for its own columns. All ranks
of a group call the same operations in the same order, also with no tokens at all (T = 0).
"""

from megatron_srpo.ops.divergence import (
    sampled_token_divergence,
    vocab_parallel_divergence,
    vocab_parallel_topk_divergence,
)
from megatron_srpo.ops.fused_linear import (
    Divergence,
    TeacherSide,
    TokenTerms,
    fused_linear_divergence,
    fused_linear_log_prob,
    fused_linear_loss,
)
from megatron_srpo.ops.fused_memory import fused_linear_bytes
from megatron_srpo.ops.head import LinearHead
from megatron_srpo.ops.log_prob import (
    LogProbs,
    check_targets,
    vocab_parallel_entropy,
    vocab_parallel_log_prob,
)
from megatron_srpo.ops.projection import vocab_parallel_logits
from megatron_srpo.ops.shard import VocabShard
from megatron_srpo.ops.topk import vocab_parallel_gather, vocab_parallel_topk

__all__ = [
    "Divergence",
    "LinearHead",
    "LogProbs",
    "TeacherSide",
    "TokenTerms",
    "VocabShard",
    "check_targets",
    "fused_linear_bytes",
    "fused_linear_divergence",
    "fused_linear_log_prob",
    "fused_linear_loss",
    "sampled_token_divergence",
    "vocab_parallel_divergence",
    "vocab_parallel_entropy",
    "vocab_parallel_gather",
    "vocab_parallel_log_prob",
    "vocab_parallel_logits",
    "vocab_parallel_topk",
    "vocab_parallel_topk_divergence",
]
