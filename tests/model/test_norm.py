"""RMSNorm against its formula in float64."""

from types import SimpleNamespace

import torch

from megatron_srpo.model.norm import RMSNorm


def _config(dtype: torch.dtype = torch.float32, sequence_parallel: bool = False) -> SimpleNamespace:
    return SimpleNamespace(params_dtype=dtype, sequence_parallel=sequence_parallel)


def test_equals_the_formula():
    norm = RMSNorm(_config(), 16, eps=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 0.3).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-6, rtol=1e-6)  # fp32 rounding


def test_weight_starts_at_one_in_the_model_type():
    norm = RMSNorm(_config(torch.bfloat16), 8, eps=1e-6)
    assert norm.weight.dtype == torch.bfloat16 and bool((norm.weight == 1).all())


def test_weight_carries_the_sequence_parallel_flag():
    # by this flag Megatron-Core sums the gradients of replicated weights over tensor-parallel ranks
    assert RMSNorm(_config(sequence_parallel=True), 8, eps=1e-6).weight.sequence_parallel is True
    assert RMSNorm(_config(), 8, eps=1e-6).weight.sequence_parallel is False
