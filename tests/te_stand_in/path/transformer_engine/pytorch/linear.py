"""Matrix products, alone and with the norm before them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_engine.pytorch.fp8 import operands


class Module(torch.nn.Module):
    """What all modules keep in a checkpoint beside their weights: nothing, as a tensor of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False, "recipe": None}
        self.fp8 = self.fp8_calibration = False

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        assert state is None or (isinstance(state, Tensor) and state.numel() == 0), state

    def init_fp8_metadata(self, num_gemms: int = 1) -> None: ...


class RMSNorm(Module):
    """The norm by itself."""

    def __init__(
        self,
        hidden_size: int,
        eps: float,
        sequence_parallel: bool,
        zero_centered_gamma: bool,
        params_dtype: torch.dtype,
        device: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Any = torch.nn.Parameter(torch.ones(hidden_size, dtype=params_dtype))
        self.weight.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Linear(Module):
    """A product, of which a tensor-parallel rank has some columns or rows."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: Any = "cuda",
        normalization: str | None = None,
        eps: float = 1e-5,
        return_layernorm_output: bool = False,
        zero_centered_gamma: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        assert not bias and not return_bias and not fuse_wgrad_accumulation
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.parallel_mode, self.tp_group, self.tp_size = parallel_mode, tp_group, tp_size
        self.sequence_parallel, self.eps = sequence_parallel and tp_size > 1, eps
        self.save_original_input = False
        if normalization is not None:
            assert normalization == "RMSNorm"
            self.layer_norm_weight: Any = torch.nn.Parameter(torch.ones(in_features, dtype=params_dtype))
            self.layer_norm_weight.sequence_parallel = sequence_parallel
        rows = out_features // (tp_size if parallel_mode == "column" else 1)
        columns = in_features // (tp_size if parallel_mode == "row" else 1)
        self.weight: Any = torch.nn.Parameter(torch.empty(rows, columns, dtype=params_dtype))
        assert init_method is not None
        init_method(self.weight)
        if parallel_mode is not None:
            self.weight.tensor_model_parallel = True
            self.weight.partition_dim = 0 if parallel_mode == "column" else 1
            self.weight.partition_stride = 1

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        from megatron.core import tensor_parallel

        parallel = self.parallel_mode if self.tp_size > 1 else None
        if parallel == "column" and self.sequence_parallel:
            x = tensor_parallel.gather_from_sequence_parallel_region(x, group=self.tp_group)
        elif parallel == "column":
            x = tensor_parallel.copy_to_tensor_model_parallel_region(x, group=self.tp_group)
        y = F.linear(*operands(x, self.weight))
        if parallel == "row" and self.sequence_parallel:
            return tensor_parallel.reduce_scatter_to_sequence_parallel_region(y, group=self.tp_group)
        if parallel == "row":
            return tensor_parallel.reduce_from_tensor_model_parallel_region(y, group=self.tp_group)
        return y


class LayerNormLinear(Linear):
    """A norm and the product after it."""

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        weight = self.layer_norm_weight
        return super().forward(F.rms_norm(x, weight.shape, weight, self.eps), is_first_microbatch)


class GroupedLinear(Module):
    """One product per expert."""

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        init_method: Callable,
        params_dtype: torch.dtype,
        bias: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        assert not bias
        self.num_gemms, self.use_bias = num_gemms, bias
        for number in range(num_gemms):
            weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype))
            init_method(weight)
            self.register_parameter(f"weight{number}", weight)

    def forward(self, x: Tensor, m_splits: Sequence[int], is_first_microbatch: bool | None = None) -> Tensor:
        parts = x.split(list(m_splits))
        weights = (self.get_parameter(f"weight{number}") for number in range(self.num_gemms))
        products = (F.linear(*operands(part, weight)) for part, weight in zip(parts, weights, strict=True))
        return torch.cat(list(products))
