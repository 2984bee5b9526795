"""The shape of a Qwen3, dense or mixture of experts, read from ``config.json``, and how it can be split.

Nothing here imports Megatron-Core.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_srpo.errors import ConfigError, ModelError
from megatron_srpo.model.stages import PipelineStages

DEFAULT_VOCAB_MULTIPLE = 128

# Field of the architecture -> key in config.json, for the integers that have no safe default.
_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}

# Keys that must hold this value where they are present: anything else is another model.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
}

# The same for mixture-of-experts models: what relatives of Qwen3 have besides.
_FIXED_EXPERTS = {
    "shared_expert_intermediate_size": 0,
    "n_shared_experts": 0,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "softmax",
    "routed_scaling_factor": 1.0,
}

_DENSE, _MIXTURE = "qwen3", "qwen3_moe"


@dataclass(frozen=True)
class Experts:
    """The feed-forward part of a Qwen3 mixture of experts.

    Attributes:
        count: experts of a layer.
        per_token: experts that compute each token.
        ffn_hidden_size: units of one expert.
        renormalize: whether the router's probabilities of a token's experts are scaled to sum to 1.
        dense_layers: layers, counted from 0, that have an ordinary feed-forward part instead.
    """

    count: int
    per_token: int
    ffn_hidden_size: int
    renormalize: bool
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Qwen3Architecture:
    """Sizes and constants of a Qwen3 (RMSNorm, QK-norm, GQA, SwiGLU, RoPE, no biases).

    Attributes:
        ffn_hidden_size: of layers without experts.
        experts: None for a dense model.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tied_embeddings: bool
    initializer_range: float
    experts: Experts | None = None

    @classmethod
    def from_hf_folder(cls, folder: str | Path) -> "Qwen3Architecture":
        """Read ``config.json`` of a Hugging Face model folder.

        Raises:
            ModelError: no such folder or file, not JSON, or not a Qwen3 (names the field).
        """
        return cls.from_hf_config(read_hf_config(folder))

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> "Qwen3Architecture":
        """Build from the content of ``config.json`` (of transformers 4 or 5).

        Raises:
            ModelError: a field is missing or holds what a Qwen3 does not have.
        """
        _refuse_other_models(config)
        sizes = {field: _positive_integer(config, key) for field, key in _SIZES.items()}
        if sizes["num_heads"] % sizes["num_kv_heads"]:
            raise ModelError(
                f"num_attention_heads = {sizes['num_heads']} is not a multiple of "
                f"num_key_value_heads = {sizes['num_kv_heads']}; correct config.json"
            )
        return cls(
            **sizes,
            rope_theta=_rope_theta(config),
            rms_norm_eps=_positive_number(config, "rms_norm_eps"),
            tied_embeddings=_boolean(config, "tie_word_embeddings"),
            initializer_range=float(config.get("initializer_range", 0.02)),
            experts=_experts(config, sizes["num_layers"]) if config["model_type"] == _MIXTURE else None,
        )

    def has_experts(self, layer: int) -> bool:
        """Say whether ``layer``, counted from 0 over the whole model, is a mixture of experts."""
        return self.experts is not None and layer not in self.experts.dense_layers

    @property
    def has_dense_layers(self) -> bool:
        """Whether any layer has an ordinary feed-forward part."""
        return self.experts is None or len(self.experts.dense_layers) > 0

    def padded_vocab_size(self, tp: int, multiple: int = DEFAULT_VOCAB_MULTIPLE) -> int:
        """Return the vocabulary size with padding rows: the next multiple of ``multiple * tp``."""
        unit = multiple * tp
        return -(-self.vocab_size // unit) * unit


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of ``config.json`` in a Hugging Face model folder; ModelError when unreadable."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise ModelError(f"model folder {str(folder)!r} does not exist; give a folder in Hugging Face format")
    if not path.is_file():
        raise ModelError(f"{path} does not exist; the folder is not a Hugging Face model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, not a JSON object; download it again")
    return config


def check_layout(arch: Qwen3Architecture, tp: int, stages: PipelineStages, expert: int = 1) -> None:
    """Refuse a layout that cannot split this model. The vocabulary is padded, so it never forbids one.

    Args:
        tp, expert: tensor and expert parallel sizes.

    Raises:
        ConfigError: names the size, the layout and the sizes that would work.
    """
    split_by_tp = {"attention heads": arch.num_heads, "key/value heads": arch.num_kv_heads}
    if arch.has_dense_layers:
        split_by_tp["feed-forward units"] = arch.ffn_hidden_size
    for what, size in split_by_tp.items():
        if size % tp:
            raise ConfigError(
                f"tensor parallel size {tp} does not divide the model's {size} {what}; "
                f"possible sizes: {_common_divisors(*split_by_tp.values())}"
            )
    stages.check(arch.num_layers)
    _check_expert_layout(arch, tp, expert)


def _check_expert_layout(arch: Qwen3Architecture, tp: int, expert: int) -> None:
    if arch.experts is None:
        if expert > 1:
            raise ConfigError(f"expert parallel size {expert}, but the model has no experts; use 1")
        return
    if arch.experts.count % expert:
        raise ConfigError(
            f"expert parallel size {expert} does not divide the model's {arch.experts.count} experts; "
            f"possible sizes: {_common_divisors(arch.experts.count)}"
        )
    few, many = sorted((tp, expert))
    if many % few:
        raise ConfigError(
            f"tensor parallel size {tp} and expert parallel size {expert}: the ranks that share a layer's "
            "experts are whole groups of those that share its attention, or the other way round; "
            "one size must be a multiple of the other"
        )


def _common_divisors(*sizes: int) -> str:
    return ", ".join(str(n) for n in range(1, min(sizes) + 1) if all(size % n == 0 for size in sizes))


def _refuse_other_models(config: dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in (_DENSE, _MIXTURE):
        raise ModelError(
            f"model_type = {model_type!r}; only Qwen3 is supported (model_type {_DENSE!r} or {_MIXTURE!r})"
        )
    fixed = _FIXED if model_type == _DENSE else {**_FIXED, **_FIXED_EXPERTS}
    for key, expected in fixed.items():
        if config.get(key, expected) != expected:
            raise ModelError(f"{key} = {config[key]!r}; a Qwen3 has {expected!r}; use one")
    quantization = config.get("quantization_config")
    if quantization is not None:
        raise ModelError(
            f"quantization_config = {quantization!r}; quantised weights cannot be trained. "
            "Use the unquantised model"
        )
    layer_types = set(config.get("layer_types") or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ModelError(f"layer_types holds {sorted(layer_types)}; only 'full_attention' is supported")


def _experts(config: dict[str, Any], num_layers: int) -> Experts:
    # transformers 5 writes the number of experts under another name than the published files have.
    count = _positive_integer(config, "num_local_experts" if "num_local_experts" in config else "num_experts")
    per_token = _positive_integer(config, "num_experts_per_tok")
    renormalize = _boolean(config, "norm_topk_prob")
    if per_token > count:
        raise ModelError(
            f"num_experts_per_tok = {per_token} exceeds the {count} experts; correct config.json"
        )
    if per_token == 1 and renormalize:
        raise ModelError(
            "num_experts_per_tok = 1 with norm_topk_prob = true makes every weight of the router 1; "
            "no such Qwen3 exists, and Megatron-Core refuses it. Set norm_topk_prob to false"
        )
    return Experts(
        count=count,
        per_token=per_token,
        ffn_hidden_size=_positive_integer(config, "moe_intermediate_size"),
        renormalize=renormalize,
        dense_layers=_dense_layers(config, num_layers),
    )


def _dense_layers(config: dict[str, Any], num_layers: int) -> tuple[int, ...]:
    """List the layers without experts, by the two keys that decide it."""
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(layer in range(num_layers) for layer in listed):
        raise ModelError(f"mlp_only_layers = {listed!r}; it must list layers from 0 to {num_layers - 1}")
    step = _positive_integer({"decoder_sparse_step": 1, **config}, "decoder_sparse_step")
    dense = tuple(layer for layer in range(num_layers) if layer in listed or (layer + 1) % step)
    if len(dense) == num_layers:
        raise ModelError(
            f"mlp_only_layers = {listed!r} and decoder_sparse_step = {step} leave no layer with experts; "
            f"such a model is a dense one (model_type {_DENSE!r})"
        )
    return dense


def _required(config: dict[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise ModelError(f"{key} is missing in config.json; add it or download the file again")
    return config[key]


def _positive_integer(config: dict[str, Any], key: str) -> int:
    value = _required(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{key} = {value!r} in config.json; it must be a positive integer")
    return value


def _positive_number(config: dict[str, Any], key: str) -> float:
    value = _required(config, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{key} = {value!r} in config.json; it must be a positive number")
    return float(value)


def _boolean(config: dict[str, Any], key: str) -> bool:
    value = _required(config, key)
    if not isinstance(value, bool):
        raise ModelError(f"{key} = {value!r} in config.json; it must be true or false")
    return value


def _rope_theta(config: dict[str, Any]) -> float:
    """Read RoPE's base from ``rope_parameters`` (transformers 5) or ``rope_theta`` (transformers 4)."""
    for section in ("rope_parameters", "rope_scaling"):
        parameters = config.get(section) or {}
        rope_type = parameters.get("rope_type", parameters.get("type", "default"))
        if rope_type != "default":
            raise ModelError(
                f"{section}: rope type {rope_type!r}; only 'default' (no scaling) is supported. "
                "Remove the scaling and keep sequences within the trained length"
            )
    parameters = config.get("rope_parameters") or {}
    return _positive_number(parameters if "rope_theta" in parameters else config, "rope_theta")
