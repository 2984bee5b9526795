"""What can run where, and which sizes FP8 products take: arithmetic, without any device."""

from pathlib import Path

import pytest

from megatron_srpo.config.model import FP8_RECIPES
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.packing import TokenSplit
from megatron_srpo.model.precision import (
    LOCAL,
    Layers,
    check_fp8_sizes,
    choose_layers,
    recipes_on,
    token_alignment,
    why_not_fp8,
    why_not_transformer_engine,
)
from megatron_srpo.platform import Accelerator
from tests.model.tiny import EXPERTS, SMALL

NOTHING = Accelerator()
A100 = Accelerator((8, 0), (12, 8), "2.8.0")
L4 = Accelerator((8, 9), (12, 8), "2.8.0")
H100 = Accelerator((9, 0), (12, 9), "2.8.0+4ba2f8a")
B200 = Accelerator((10, 0), (13, 0), "2.10.0")
RTX_PRO = Accelerator((12, 0), (13, 0), "2.10.0")


@pytest.mark.parametrize(
    ("device", "able"),
    [
        (NOTHING, ()),
        (A100, ()),
        (L4, ("delayed", "tensorwise")),
        (H100, ("delayed", "tensorwise", "blockwise")),
        (Accelerator((9, 0), (12, 8), "2.8.0"), ("delayed", "tensorwise")),
        (B200, FP8_RECIPES),
        (RTX_PRO, ("delayed", "tensorwise", "blockwise")),
        (Accelerator((9, 0), (12, 9), None), ()),
        (Accelerator((9, 0), (12, 9), "2.2.1"), ()),
    ],
)
def test_recipes_of_a_device(device: Accelerator, able: tuple[str, ...]) -> None:
    assert tuple(name for name, reason in recipes_on(device).items() if reason is None) == able


@pytest.mark.parametrize(
    ("recipe", "device", "said"),
    [
        ("delayed", A100, "compute capability 8.0, delayed needs 8.9"),
        ("blockwise", Accelerator((9, 0), (12, 8), "2.8.0"), "CUDA 12.8, blockwise needs 12.9"),
        ("mxfp8", H100, "compute capability 9.0, mxfp8 needs 10.0"),
        ("mxfp8", RTX_PRO, "12.0"),
        ("tensorwise", NOTHING, "no CUDA device"),
        ("tensorwise", Accelerator((9, 0), (12, 9), None), "not installed"),
        ("tensorwise", Accelerator((9, 0), (12, 9), "1.13"), "2.3 or later"),
    ],
)
def test_the_reason_is_said(recipe: str, device: Accelerator, said: str) -> None:
    assert said in (why_not_fp8(recipe, device) or "")


def test_layers_are_chosen_by_device_and_type() -> None:
    engine = Layers("transformer_engine")
    assert choose_layers("auto", "bfloat16", "off", False, H100) == engine
    assert choose_layers("auto", "bfloat16", "off", False, A100) == engine
    assert choose_layers("auto", "float32", "off", False, H100) == LOCAL
    assert choose_layers("auto", "bfloat16", "off", False, NOTHING) == LOCAL
    assert choose_layers("local", "bfloat16", "off", False, H100) == LOCAL
    chosen = choose_layers("auto", "bfloat16", "blockwise", True, H100)
    assert chosen == Layers("transformer_engine", "blockwise", True)
    assert chosen.untrained(fp8=True) == Layers("transformer_engine", "blockwise")
    assert chosen.untrained(fp8=False) == engine


def test_what_cannot_run_is_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"9\.0, mxfp8 needs 10\.0.*off, delayed, tensorwise, blockwise$"):
        choose_layers("auto", "bfloat16", "mxfp8", False, H100)
    with pytest.raises(ConfigError, match=r"no CUDA device; install .* model\.layers=local"):
        choose_layers("transformer_engine", "bfloat16", "off", False, NOTHING)


def test_old_devices_have_no_bfloat16() -> None:
    assert "8.0" in (why_not_transformer_engine(Accelerator((7, 5), (12, 8), "2.8")) or "")


def architecture(**sizes: int) -> Qwen3Architecture:
    kind = "qwen3_moe" if "num_experts" in sizes else "qwen3"
    return Qwen3Architecture.from_hf_config({**SMALL, **sizes, "model_type": kind})


def test_sizes_of_a_real_model_are_taken() -> None:
    """Qwen3-8B on up to 8 ranks, Qwen3-30B-A3B on 4 (key/value heads)."""
    large = architecture(
        hidden_size=4096, intermediate_size=12288, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    )
    mixture = architecture(
        **{**EXPERTS, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
        hidden_size=2048,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
    )
    for recipe in FP8_RECIPES:
        for tp in (1, 2, 4, 8):
            check_fp8_sizes(large, recipe, tp)
        check_fp8_sizes(mixture, recipe, 4)


@pytest.mark.parametrize(
    ("sizes", "recipe", "tp", "said"),
    [
        ({"hidden_size": 40}, "tensorwise", 1, "linear_qkv is 128 x 40"),
        ({}, "mxfp8", 1, "linear_fc2 is 32 x 48"),
        ({}, "delayed", 2, "linear_fc2 is 32 x 24"),
        ({**EXPERTS, "mlp_only_layers": []}, "blockwise", 1, "its linear_fc2 is 32 x 24"),
    ],
)
def test_other_sizes_are_refused(sizes: dict[str, int], recipe: str, tp: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_fp8_sizes(architecture(**sizes), recipe, tp)


@pytest.mark.parametrize("recipe", ["off", *FP8_RECIPES])
@pytest.mark.parametrize(("cp", "shares"), [(1, 1), (1, 4), (2, 1), (4, 2)])
def test_every_rank_gets_whole_units_of_tokens(recipe: str, cp: int, shares: int) -> None:
    unit = token_alignment(recipe)
    split = TokenSplit(0, cp, shares, unit)
    for lengths in ([1], [17, 3, 250], [512]):
        padded = split.padded(lengths)
        assert sum(padded) % (cp * shares * unit) == 0
        assert sum(padded) - sum(lengths) < len(lengths) * 2 * cp + split.row_multiple
        assert all(length % split.sequence_multiple == 0 for length in padded)
        assert len(split.rows(padded)) % (shares * unit) == 0


def test_nothing_of_torch_is_needed_to_check(tmp_path: Path) -> None:
    """The command line checks sizes before it starts any rank."""
    import subprocess
    import sys

    code = "import sys, megatron_srpo.session.preflight; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
