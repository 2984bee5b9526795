"""Which kernels the layers run on and what they need: Transformer Engine and its FP8 recipes.

Facts and arithmetic only: nothing here imports torch, Megatron-Core or Transformer Engine. Sources:
Transformer Engine 2.20 (``pytorch/{quantization,utils}.py``, ``common/gemm/cublaslt_gemm.cu``) and
Megatron-Core (``fp8_utils.py``).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from megatron_srpo.config.model import FP8_RECIPES
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture

if TYPE_CHECKING:
    from megatron_srpo.platform import Accelerator

Version = tuple[int, int]

#: The oldest with all four recipes.
OLDEST_TRANSFORMER_ENGINE: Version = (2, 3)

#: Recipe -> what the two sizes of every matrix are multiples of, and the tokens that meet it on a rank.
#: cuBLAS wants rows of 16 bytes of each operand and, for the gradient of the weights, of its transpose;
#: MXFP8 has one scale for 32 values either way.
_ALIGNMENT = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}


@dataclass(frozen=True)
class Layers:
    """What the layers of a model are made of.

    Attributes:
        kernels: "local" for Megatron-Core's own modules and PyTorch's attention, or "transformer_engine".
        fp8: recipe of the matrix products, or "off".
        fp8_params: whether the matrices themselves are in FP8.
    """

    kernels: Literal["local", "transformer_engine"] = "local"
    fp8: str = "off"
    fp8_params: bool = False

    @property
    def transformer_engine(self) -> bool:
        return self.kernels == "transformer_engine"

    def untrained(self, fp8: bool) -> "Layers":
        """Return the layers of a model beside the policy: its matrices stay in bfloat16.

        Args:
            fp8: whether its products are in FP8 where the policy's are.
        """
        return replace(self, fp8=self.fp8 if fp8 else "off", fp8_params=False)


LOCAL = Layers()


def token_alignment(fp8: str) -> int:
    """Return what the number of tokens that a rank's matrices meet is padded to a multiple of."""
    return _ALIGNMENT.get(fp8, 1)


def why_not_transformer_engine(device: "Accelerator") -> str | None:
    """Say why Transformer Engine's layers cannot run on a device; None where they can."""
    if device.capability is None:
        return "there is no CUDA device"
    if device.transformer_engine is None:
        return "Transformer Engine is not installed"
    if device.capability < (8, 0):
        return f"the device has compute capability {_dotted(device.capability)}, its bfloat16 needs 8.0"
    if _version(device.transformer_engine) < OLDEST_TRANSFORMER_ENGINE:
        oldest = _dotted(OLDEST_TRANSFORMER_ENGINE)
        return f"Transformer Engine is {device.transformer_engine}, {oldest} or later is needed"
    return None


def why_not_fp8(recipe: str, device: "Accelerator") -> str | None:
    """Say why a recipe cannot run on a device; None where it can. The conditions are Transformer Engine's."""
    missing = why_not_transformer_engine(device)
    if missing is not None or device.capability is None or device.cuda is None:
        return missing or "CUDA's version is unknown"
    least: Version = {"blockwise": (9, 0), "mxfp8": (10, 0)}.get(recipe, (8, 9))
    if device.capability < least:
        found = _dotted(device.capability)
        return f"the device has compute capability {found}, {recipe} needs {_dotted(least)}"
    if recipe == "mxfp8" and device.capability >= (12, 0):
        return f"mxfp8 lacks products on compute capability {_dotted(device.capability)} (12.0 and later)"
    oldest = {"blockwise": (12, 9), "mxfp8": (12, 8)}.get(recipe, (12, 1))
    if device.cuda < oldest:
        return f"torch was built with CUDA {_dotted(device.cuda)}, {recipe} needs {_dotted(oldest)}"
    return None


def recipes_on(device: "Accelerator") -> dict[str, str | None]:
    """Return every recipe with the reason that rules it out on a device, None where it can run."""
    return {recipe: why_not_fp8(recipe, device) for recipe in FP8_RECIPES}


def choose_layers(layers: str, dtype: str, fp8: str, fp8_params: bool, device: "Accelerator") -> Layers:
    """Decide what the layers are made of, from the keys of ``model`` in the configuration.

    Raises:
        ConfigError: what is asked for cannot run on this device.
    """
    if fp8 != "off":
        reason = why_not_fp8(fp8, device)
        if reason is not None:
            able = [name for name, why in recipes_on(device).items() if why is None]
            raise ConfigError(
                f"model.fp8 = {fp8!r} cannot run here: {reason}. Possible here: {', '.join(['off', *able])}"
            )
        return Layers("transformer_engine", fp8, fp8_params)
    if layers == "local" or (layers == "auto" and dtype != "bfloat16"):
        return LOCAL
    reason = why_not_transformer_engine(device)
    if reason is None:
        return Layers("transformer_engine")
    if layers == "auto":
        return LOCAL
    raise ConfigError(
        f"model.layers = 'transformer_engine' cannot run here: {reason}; install transformer-engine[pytorch] "
        "for this CUDA, or set model.layers=local"
    )


def check_fp8_sizes(arch: Qwen3Architecture, fp8: str, tp: int) -> None:
    """Refuse matrices whose sizes FP8 products cannot take, as a tensor-parallel rank holds them.

    Raises:
        ConfigError: names the matrix, its sizes and what they must be multiples of.
    """
    unit = token_alignment(fp8)
    for matrix, sizes in _matrices(arch, tp).items():
        if any(size % unit for size in sizes):
            raise ConfigError(
                f"model.fp8 = {fp8!r} needs sizes that are multiples of {unit}, but {matrix} is "
                f"{sizes[0]} x {sizes[1]} on a rank of parallel.tensor = {tp}; use fewer tensor-parallel "
                "ranks, another recipe, or model.fp8=off"
            )


def _matrices(arch: Qwen3Architecture, tp: int) -> dict[str, tuple[int, int]]:
    """Return the sizes of the matrices of a layer on one rank: outputs, inputs."""
    hidden, heads = arch.hidden_size, arch.num_heads * arch.head_dim // tp
    matrices = {
        "linear_qkv": (heads + 2 * arch.num_kv_heads * arch.head_dim // tp, hidden),
        "linear_proj": (hidden, heads),
    }
    if arch.has_dense_layers:
        units = arch.ffn_hidden_size // tp
        matrices |= {"linear_fc1": (2 * units, hidden), "linear_fc2": (hidden, units)}
    if arch.experts is not None:
        units = arch.experts.ffn_hidden_size
        matrices |= {"an expert's linear_fc1": (2 * units, hidden), "its linear_fc2": (hidden, units)}
    return matrices


def _version(text: str) -> Version:
    major, minor, *_ = [*text.split("."), "0"]
    return int(major), int(minor)


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
