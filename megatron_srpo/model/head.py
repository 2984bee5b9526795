"""The policy head: it hands out hidden states, and its weight goes to the loss.

Logits of a whole micro-batch are never formed by the model. The loss takes the last hidden states and
:func:`head_weight` and forms vocabulary shards of logits chunk by chunk.
"""

import torch

from megatron_srpo.model.chunks import policies
from megatron_srpo.model.megatron_core import ColumnParallelLinear


class PolicyHead(ColumnParallelLinear):
    """An output layer whose forward returns its input.

    It stays a ``ColumnParallelLinear`` so that checkpoints keep the key ``output_layer.weight`` with its
    vocabulary sharding, and stays in the model's forward so that hooks on its weight still fire there.
    """

    @classmethod
    def replacing(cls, layer: ColumnParallelLinear) -> "PolicyHead":
        """Build a head with the weight of ``layer`` (none when this stage's embedding is tied to it)."""
        head = cls(
            layer.input_size,
            layer.output_size,
            config=layer.config,
            init_method=torch.nn.init.zeros_,
            bias=False,
            skip_weight_param_allocation=True,
            tp_group=layer.tp_group,
        )
        head.weight = layer.weight
        return head

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Return the hidden states [S, B, H] unchanged, and no bias."""
        return input_, None


def head_weight(model: torch.nn.Module) -> torch.nn.Parameter:
    """Return this rank's vocabulary rows of the head, [padded vocabulary / TP, H]. Last stage only.

    With tied embeddings this is the embedding (or, with pipeline stages, its copy on the last one). A
    gradient that reaches it from the loss is collected by Megatron-Core's DDP like any other: its hook sits
    on the parameter, not on the module.
    """
    policy = policies(model)[-1]
    assert policy.post_process, "only the last pipeline stage has a head"
    if policy.share_embeddings_and_output_weights:
        return policy.shared_embedding_or_output_weight()
    return policy.output_layer.weight
