"""Which model is trained, in which precision, and how it is spread over ranks."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option
from megatron_srpo.errors import ConfigError

FP8_RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


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
    layers: str = option(
        "auto",
        "Whose modules the layers are made of. local: Megatron-Core's own and PyTorch's; transformer_engine: "
        "fused kernels (CUDA, bfloat16); auto: these where they can be used.",
        choices=("auto", "local", "transformer_engine"),
    )
    fp8: str = option(
        "off",
        "Matrix products of the layers in FP8, by Transformer Engine, and how values are scaled: delayed or "
        "tensorwise (one scale per tensor, of earlier steps or of its own), blockwise, mxfp8.",
        choices=("off", *FP8_RECIPES),
    )
    fp8_passes: str = option(
        "policy",
        "Which passes run in FP8, not bfloat16. training: the update; policy: also its log-probs, so that "
        "importance ratios begin at 1; all: also the teacher's and the reference's.",
        choices=("training", "policy", "all"),
    )
    fp8_params: bool = option(
        False, "Keep the policy's matrices themselves in FP8, and gather them so after an optimizer step."
    )

    def validate(self) -> None:
        if self.layers == "transformer_engine" and self.dtype != "bfloat16":
            raise ConfigError(
                f"model.layers = 'transformer_engine' with model.dtype = {self.dtype!r}: its attention "
                "computes in bfloat16, and its float32 products are TF32; set model.dtype=bfloat16, or "
                "model.layers=local"
            )
        if self.fp8 == "off":
            if self.fp8_params:
                raise ConfigError("model.fp8_params = True needs FP8 products; set model.fp8 to a recipe")
            return
        if self.layers == "local" or self.dtype != "bfloat16":
            raise ConfigError(
                f"model.fp8 = {self.fp8!r} needs model.dtype = 'bfloat16' (it is {self.dtype!r}) and "
                f"Transformer Engine's layers (model.layers is {self.layers!r}); change these, or set "
                "model.fp8=off"
            )
        if self.fp8 == "delayed" and self.fp8_passes == "all":
            raise ConfigError(
                "model.fp8 = 'delayed' with model.fp8_passes = 'all': its scales are learnt in training, "
                "which teacher and reference never are; set model.fp8_passes=policy, or another recipe"
            )
        if self.fp8_params:
            self._check_fp8_params()

    def _check_fp8_params(self) -> None:
        if self.fp8 not in ("tensorwise", "blockwise"):
            reason = (
                "a model that is loaded would be rounded by scales that are not learnt yet"
                if self.fp8 == "delayed"
                else "Megatron-Core gathers those through the gradients' memory, which is not supported here"
            )
            raise ConfigError(
                f"model.fp8_params = True with model.fp8 = {self.fp8!r}: {reason}; set "
                "model.fp8_params=false, or model.fp8 to tensorwise or blockwise"
            )
        if self.fp8_passes == "training":
            raise ConfigError(
                "model.fp8_params = True leaves no weights in bfloat16 for the log-prob passes that "
                "model.fp8_passes = 'training' asks for; set one of them otherwise"
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
