"""Vocabulary-parallel output heads: values, and gradients to hidden states and weights."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops import VocabShard, vocab_parallel_logits
from tests.ops.harness import EDGES, Case, cases, check
from tests.ranks import run_ranks


@pytest.mark.parametrize("world", [1, 2, 4])
def test_heads_match_the_dense_reference_in_edge_cases(world: int) -> None:
    check("heads", world, EDGES)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_heads_match_the_dense_reference(case: Case) -> None:
    check("heads", 1, [case])


@pytest.mark.parametrize("world", [2, 4])
@given(st.lists(cases(), min_size=4, max_size=12))
@settings(deadline=None, max_examples=4)
def test_sharded_heads_match_the_dense_reference(world: int, batch: list[Case]) -> None:
    check("heads", world, batch)


def gradcheck_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randn(7, 4, dtype=torch.float64, requires_grad=True)


def test_gradcheck() -> None:
    shard = VocabShard(None, 5, 7)

    def real_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return shard.valid(vocab_parallel_logits(hidden, weight, shard, 0.7))

    assert torch.autograd.gradcheck(real_logits, gradcheck_inputs())


def test_padding_columns_are_minus_infinity_and_their_rows_get_no_gradient() -> None:
    hidden, weight = torch.randn(2, 4, requires_grad=True), torch.randn(7, 4)
    weight[5:] = float("nan")
    weight.requires_grad_()
    logits = vocab_parallel_logits(hidden, weight, VocabShard(None, 5, 7))
    assert torch.isneginf(logits[:, 5:]).all() and torch.isfinite(logits[:, :5]).all()
    logits.exp().sum().backward()
    assert weight.grad is not None and hidden.grad is not None
    assert not weight.grad[5:].any() and weight.grad[:5].all()
    assert torch.isfinite(hidden.grad).all()


def test_only_the_gradients_asked_for_are_formed() -> None:
    hidden, weight = torch.randn(2, 4), torch.randn(5, 4, requires_grad=True)
    shard = VocabShard(None, 5, 5)
    vocab_parallel_logits(hidden, weight, shard).sum().backward()
    assert weight.grad is not None and hidden.grad is None
    hidden.requires_grad_()
    vocab_parallel_logits(hidden, weight.detach(), shard).sum().backward()
    assert hidden.grad is not None


def bf16_head(rank: int, world: int, fp32_gemm: bool) -> dict[str, torch.Tensor]:
    """Output and gradients of a bf16 head on `world` ranks, as float64 numpy arrays."""
    generator = torch.Generator().manual_seed(3)
    whole_VH = torch.randn(32, 64, generator=generator).bfloat16()
    hidden = torch.randn(5, 64, generator=generator).bfloat16().requires_grad_()
    shard = VocabShard(dist.group.WORLD if world > 1 else None, 32, 32)
    weight = whole_VH[shard.start : shard.stop].clone().requires_grad_()
    logits = vocab_parallel_logits(hidden, weight, shard, 0.5, fp32_gemm=fp32_gemm)
    assert logits.dtype == torch.float32
    logits.sin().sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    tensors = {"logits": logits.detach(), "hidden": hidden.grad, "weight": weight.grad}
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def bf16_reference() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(32, 64, generator=generator).bfloat16().double().requires_grad_()
    hidden = torch.randn(5, 64, generator=generator).bfloat16().double().requires_grad_()
    logits = hidden @ weight.t() / 0.5
    logits.sin().sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return {"logits": logits.detach(), "hidden": hidden.grad, "weight": weight.grad}


@pytest.mark.parametrize("world", [1, 2])
def test_bf16_heads_with_fp32_products(world: int) -> None:
    parts = run_ranks(world, bf16_head, True)
    expected = bf16_reference()
    logits = torch.cat([torch.tensor(part["logits"]) for part in parts], dim=1)
    weight = torch.cat([torch.tensor(part["weight"]) for part in parts])
    # Inputs are exact in float32, so only its own rounding is left (sums of 64 products of size up to 10).
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-5, atol=1e-5)
    # The gradients are correct to float32 and then rounded once to bf16: half a unit of 2^-8, relative; the
    # absolute part is float32's, for entries that are small differences of large ones.
    torch.testing.assert_close(weight, expected["weight"], rtol=2**-8, atol=1e-4)
    for part in parts:
        torch.testing.assert_close(torch.tensor(part["hidden"]), expected["hidden"], rtol=2**-8, atol=1e-4)


def test_bf16_products_are_rounded_to_bf16() -> None:
    (plain,), (exact,) = run_ranks(1, bf16_head, False), run_ranks(1, bf16_head, True)
    # The product is rounded once before it is divided by the temperature: 2^-8 relative; not bit-equal.
    torch.testing.assert_close(plain["logits"], exact["logits"], rtol=2**-8, atol=1e-6)
    assert (plain["logits"] != exact["logits"]).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_divide_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature {temperature}"):
        vocab_parallel_logits(torch.zeros(1, 2), torch.zeros(3, 2), VocabShard(None, 3, 3), temperature)


@pytest.mark.parametrize(("hidden", "weight"), [((1, 2), (4, 2)), ((1, 2), (3, 3)), ((2,), (3, 2))])
def test_shapes_that_do_not_fit_are_refused(hidden: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"need \(tokens, hidden\) and \(3, hidden\)"):
        vocab_parallel_logits(torch.zeros(hidden), torch.zeros(weight), VocabShard(None, 3, 3))
