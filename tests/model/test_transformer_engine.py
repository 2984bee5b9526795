"""Layers of Transformer Engine: Megatron-Core's own classes of them, over a stand-in for their CUDA kernels.

What the kernels themselves compute is tested on a GPU (tests/gpu). Here: the specs, every parameter's name
and place, checkpoints, communication, which pass runs in FP8, and the padding that it needs.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo.config.algorithm import AlgorithmConfig, PolicyLossConfig
from megatron_srpo.model.precision import Layers
from tests.model.tiny import EXPERTS, reference_logits, write_random_qwen3
from tests.ranks import run_ranks
from tests.te_stand_in import jobs, run_stand_in
from tests.training import layer_jobs
from tests.training.harness import Layout

ENGINE = Layers("transformer_engine")
SEQUENCES = [[5, 17, 80, 3, 3, 60, 12], [9], [44, 2, 2, 91, 8, 30, 31, 32, 33, 1, 0]]
# fp32 sums in another order: about 1e-7 relative, some operations deep.
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("dense")))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("deep"), num_hidden_layers=4))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With a dense layer between layers of experts."""
    options = {**EXPERTS, "num_hidden_layers": 3, "mlp_only_layers": [1]}
    return str(write_random_qwen3(tmp_path_factory.mktemp("mixture"), **options))


@pytest.mark.parametrize("tp", [1, 2])
def test_logits_equal_those_of_transformers(dense: str, tp: int) -> None:
    found = run_stand_in(tp, layer_jobs.logits, dense, Layout(tp=tp, layers=ENGINE), SEQUENCES)[0]
    expected_TV = torch.cat(reference_logits(dense, SEQUENCES))
    torch.testing.assert_close(found["logits"], expected_TV, rtol=1e-4, atol=1e-4)


def test_norms_lie_in_the_products_after_them(dense: str) -> None:
    names = run_stand_in(1, layer_jobs.logits, dense, Layout(layers=ENGINE), SEQUENCES)[0]["names"]
    moved = {local: name for local, name in names.items() if local != name}
    layer = "decoder.layers.1."
    assert len(moved) == 4
    assert moved[f"{layer}input_layernorm.weight"] == f"{layer}self_attention.linear_qkv.layer_norm_weight"
    assert moved[f"{layer}pre_mlp_layernorm.weight"] == f"{layer}mlp.linear_fc1.layer_norm_weight"


def test_experts_lie_in_one_grouped_product(mixture: str) -> None:
    found = run_stand_in(1, layer_jobs.logits, mixture, Layout(layers=ENGINE), SEQUENCES)[0]
    names, layer = found["names"], "decoder.layers.2."
    expert = f"{layer}mlp.experts.local_experts.3.linear_fc2.weight"
    assert names[expert] == f"{layer}mlp.experts.linear_fc2.weight3"
    norm = f"{layer}pre_mlp_layernorm.weight"  # before experts it stands by itself
    assert names[norm] == norm
    expected_TV = torch.cat(reference_logits(mixture, SEQUENCES))
    torch.testing.assert_close(found["logits"], expected_TV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_checkpoints_have_the_same_keys(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    engine = run_stand_in(1, layer_jobs.logits, folder, Layout(layers=ENGINE), SEQUENCES)[0]["keys"]
    local = run_ranks(1, layer_jobs.logits, folder, Layout(), SEQUENCES)[0]["keys"]
    assert engine == local


STEPS = {
    "one rank": ("dense", 1, {}),
    "tp2 sp": ("dense", 2, {"tp": 2, "sequence": True}),
    "pp2": ("dense", 2, {"pp": 2}),
    "pp2 virtual": ("deep", 2, {"pp": 2, "virtual": 2, "capacity": 100}),
    "dp2 distributed": ("dense", 2, {"distributed": True, "overlap": True}),
    "recompute attention": ("dense", 1, {"recompute": "selective"}),
    "recompute layers": ("dense", 1, {"recompute": "full"}),
    "experts": ("mixture", 1, {}),
    "ep2": ("mixture", 2, {"ep": 2}),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_equals_that_of_local_layers(case: str, request: pytest.FixtureRequest) -> None:
    kind, world, options = STEPS[case]
    folder, algorithm = request.getfixturevalue(kind), AlgorithmConfig(name="srpo")
    engine = run_stand_in(world, layer_jobs.step, folder, Layout(layers=ENGINE, **options), algorithm, {})[0]
    local = run_ranks(1, layer_jobs.step, folder, Layout(), algorithm, {})[0]
    assert engine["grad_norms"] == pytest.approx(local["grad_norms"], rel=RELATIVE)
    for name, value in local["sums"].items():
        assert engine["sums"][name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), name
    for name, tensor in local["weights"].items():
        torch.testing.assert_close(engine["weights"][name], tensor, rtol=RELATIVE, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
@pytest.mark.parametrize("first", ["local", "engine"])
def test_a_checkpoint_goes_on_with_other_layers(
    kind: str, first: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    runs: dict[str, Any] = {"local": (run_ranks, Layout()), "engine": (run_stand_in, Layout(layers=ENGINE))}
    second = "local" if first == "engine" else "engine"
    run, layout = runs[first]
    before = run(1, layer_jobs.save, folder, str(tmp_path), layout)[0]
    run, layout = runs[second]
    after = run(1, layer_jobs.resume, folder, str(tmp_path / "step_00000001"), layout)[0]
    for name, tensor in before["weights"].items():
        assert torch.equal(after["weights"][name], tensor), name
    assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=RELATIVE)


PENALISED = AlgorithmConfig(name="srpo", policy=PolicyLossConfig(kl_coefficient=0.1))
RECIPES = {
    "delayed": "TEDelayedScaling",
    "tensorwise": "Float8CurrentScaling",
    "blockwise": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sizes that MXFP8 takes, also on two tensor-parallel ranks."""
    return str(write_random_qwen3(tmp_path_factory.mktemp("wide"), hidden_size=64, intermediate_size=64))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("passes", ["training", "policy", "all"])
def test_each_pass_runs_in_its_precision(wide: str, recipe: str, passes: str) -> None:
    if (recipe, passes) == ("delayed", "all"):
        return  # refused by the configuration
    layout = Layout(layers=Layers("transformer_engine", recipe), fp8_passes=passes, capacity=120)
    found = run_stand_in(1, jobs.passes, wide, layout, PENALISED, torch.bfloat16)[0]
    fp8, bf16 = {RECIPES[recipe]}, {"bf16"}
    assert found["used"] == {
        "update": fp8,
        "score": bf16 if passes == "training" else fp8,
        "teach": fp8 if passes == "all" else bf16,
        "score_reference": fp8 if passes == "all" else bf16,
    }
    assert found["padding"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_are_padded_to_what_products_take(wide: str, recipe: str) -> None:
    """The stand-in refuses other rows, like the real products; sequence parallelism cuts them further."""
    layers = Layers("transformer_engine", recipe)
    layout = Layout(tp=2, sequence=True, layers=layers, capacity=120)
    found = run_stand_in(2, jobs.passes, wide, layout, PENALISED, torch.bfloat16)
    assert found[0]["grad_norm"] == found[1]["grad_norm"]


def test_replicas_do_not_wait_for_one_anothers_scales(wide: str) -> None:
    """They have different numbers of micro-batches, and scales are agreed upon after each."""
    layout = Layout(layers=Layers("transformer_engine", "delayed"), capacity=100)
    for found in run_stand_in(2, jobs.passes, wide, layout, PENALISED, torch.bfloat16):
        assert found["agreeing"] == 1
    layout = Layout(tp=2, layers=Layers("transformer_engine", "delayed"), capacity=100)
    for found in run_stand_in(2, jobs.passes, wide, layout, PENALISED, torch.bfloat16):
        assert found["agreeing"] == 2


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_stays_in_fp8(wide: str, recompute: str) -> None:
    layers = Layers("transformer_engine", "tensorwise")
    norms = [
        run_stand_in(1, jobs.passes, wide, Layout(layers=layers, recompute=kind), PENALISED, torch.bfloat16)[
            0
        ]["grad_norm"]
        for kind in ("none", recompute)
    ]
    assert norms[0] == norms[1]


def test_experts_train_in_fp8(tmp_path: Path) -> None:
    folder = write_random_qwen3(tmp_path, **{**EXPERTS, "moe_intermediate_size": 32, "hidden_size": 64})
    layout = Layout(layers=Layers("transformer_engine", "tensorwise"))
    found = run_stand_in(1, jobs.passes, str(folder), layout, PENALISED, torch.bfloat16)[0]
    assert found["used"]["update"] == {"Float8CurrentScaling"}


def test_products_are_rounded_in_fp8(wide: str) -> None:
    """Were they not, the tests above would show nothing. Three bits of mantissa move a tiny model much."""
    norms = [
        run_stand_in(1, jobs.passes, wide, Layout(layers=layers), PENALISED, torch.bfloat16)[0]["grad_norm"]
        for layers in (ENGINE, Layers("transformer_engine", "blockwise"))
    ]
    assert norms[1] != norms[0]
    assert norms[1] == pytest.approx(norms[0], rel=0.25)
