"""Which model is trained, in which precision, and how it is spread over ranks."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The policy at step 0."""

    path: str = option(help="Folder of a Qwen3, dense or mixture of experts, in Hugging Face format.")
    dtype: str = option(
        "float32", "Precision of weights and activations in training.", choices=("float32", "bfloat16")
    )
    fp32_head: bool = option(
        False, "Multiply with the head in float32 for log-probs and losses, also where dtype is bfloat16."
    )
    vocab_multiple: int = option(
        128, "The vocabulary is padded with unused rows to a multiple of this times the TP size.", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Config):
    """Ranks that one copy of the model is spread over; the remaining ranks become data-parallel replicas."""

    tensor: int = option(
        1,
        "Tensor-parallel size: every layer is split over this many ranks; divides head counts.",
        minimum=1,
    )
    pipeline: int = option(
        1, "Pipeline-parallel size: the layers are split into this many stages.", minimum=1
    )
    virtual: int = option(
        1,
        "Virtual pipeline: every stage is cut into this many chunks, and the model runs through all stages "
        "once per chunk (interleaved schedule). Shortens the pipeline's idle time, costs communication.",
        minimum=1,
    )
    first_stage_layers: int | None = option(
        None,
        "Layers of the first pipeline stage, which also holds the embedding; null: as many as the others.",
        minimum=1,
    )
    last_stage_layers: int | None = option(
        None,
        "Layers of the last pipeline stage, which also computes the loss; null: as many as the others.",
        minimum=1,
    )
    context: int = option(
        1, "Context-parallel size: every sequence is split over this many ranks, for long ones.", minimum=1
    )
    sequence: bool = option(
        True,
        "Sequence parallelism: between the split layers, tensor-parallel ranks share the tokens. Saves "
        "activation memory; without effect where tensor is 1.",
    )
    expert: int = option(
        1,
        "Expert-parallel size: the experts of every layer are dealt out to this many ranks. They are counted "
        "among tensor-, context- and data-parallel ranks, of which they are a multiple or a part.",
        minimum=1,
    )

    @property
    def replica(self) -> int:
        """Ranks that work on the same data."""
        return self.tensor * self.pipeline * self.context

    @property
    def fewest_ranks(self) -> int:
        """Ranks of the smallest job: a replica, or several where experts are spread over more ranks."""
        return max(self.tensor * self.context, self.expert) * self.pipeline
