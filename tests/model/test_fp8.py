"""Reading, filling and leaving FP8, as far as it goes without its tensors."""

from typing import Any

import pytest
import torch

from megatron_srpo.model.build import kernel_options
from megatron_srpo.model.fp8 import fill, is_fp8, plain, without_fp8
from megatron_srpo.model.megatron_core import TransformerConfig
from megatron_srpo.model.precision import LOCAL, Layers


def config(**options: Any) -> TransformerConfig:
    return TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, bf16=True, **options)


@pytest.mark.parametrize(
    ("recipe", "form"),
    [("delayed", "hybrid"), ("tensorwise", "hybrid"), ("blockwise", "e4m3"), ("mxfp8", "e4m3")],
)
def test_recipes_become_megatron_cores_options(recipe: str, form: str) -> None:
    options = kernel_options(Layers("transformer_engine", recipe, recipe == "blockwise"))
    # Megatron-Core looks for this one's kernel at once.
    assert options.pop("apply_rope_fusion") and options.pop("bias_activation_fusion")
    made = config(**options)
    assert (made.fp8, made.fp8_recipe, made.fp8_param) == (form, recipe, recipe == "blockwise")
    assert (made.fp8_amax_history_len, made.fp8_amax_compute_algo) == (1024, "max")
    assert made.tp_only_amax_red


def test_without_fp8_nothing_of_it_is_set() -> None:
    assert not any(name.startswith("fp8") for name in kernel_options(Layers("transformer_engine")))
    assert not any(kernel_options(LOCAL).values())


def modules(*configs: TransformerConfig) -> torch.nn.Module:
    model = torch.nn.ModuleList()
    for one in configs:
        part = torch.nn.Linear(1, 1)
        part.config = one
        model.append(part)
    return model


def test_a_pass_leaves_fp8_and_comes_back() -> None:
    """Megatron-Core copies the configuration for some layers of experts, so each is asked."""
    configs = [config(fp8="hybrid"), config(fp8="hybrid"), config()]
    model = modules(configs[0], *configs)
    with pytest.raises(RuntimeError, match="broken"), without_fp8(model):
        assert [one.fp8 for one in configs] == [None, None, None]
        raise RuntimeError("broken")
    assert [one.fp8 for one in configs] == ["hybrid", "hybrid", None]


def test_a_model_that_has_no_other_weights_cannot_leave() -> None:
    other, held = config(fp8="hybrid"), config(fp8="e4m3", fp8_recipe="blockwise", fp8_param=True)
    with pytest.raises(AssertionError, match="no bfloat16 pass"), without_fp8(modules(other, held)):
        pass
    assert (other.fp8, held.fp8) == ("hybrid", "e4m3")


def test_ordinary_weights_are_read_as_they_are() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert plain(weight) is weight and not is_fp8(weight)


def test_what_a_weight_was_made_from_is_filled_too() -> None:
    """The optimizer takes its fp32 weights from there."""
    weight, values = torch.nn.Parameter(torch.zeros(2, 2)), torch.rand(2, 2)
    exact = torch.zeros(2, 2)
    weight.get_high_precision_init_val = lambda: exact
    fill(weight, values)
    assert torch.equal(weight, values) and torch.equal(exact, values)
    weight.get_high_precision_init_val = lambda: None  # the optimizer has taken it
    fill(weight, 2 * values)
    assert torch.equal(weight, 2 * values) and torch.equal(exact, values)
