"""The modules that Megatron-Core's layers are made of."""

from types import SimpleNamespace

from transformer_engine.pytorch import attention, distributed, fp8, router, tensor
from transformer_engine.pytorch.attention import DotProductAttention
from transformer_engine.pytorch.fp8 import fp8_autocast, fp8_model_init
from transformer_engine.pytorch.linear import GroupedLinear, LayerNormLinear, Linear, RMSNorm
from transformer_engine.pytorch.padding import Fp8Padding, Fp8Unpadding

LayerNorm = RMSNorm
ops = SimpleNamespace(Sequential=object, FusibleOperation=object)

__all__ = [
    "DotProductAttention",
    "Fp8Padding",
    "Fp8Unpadding",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "attention",
    "distributed",
    "fp8",
    "fp8_autocast",
    "fp8_model_init",
    "ops",
    "router",
    "tensor",
]
