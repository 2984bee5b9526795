"""The same batch gives the same step in every layout, for every algorithm."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo.config.algorithm import AlgorithmConfig, DistillationConfig, PolicyLossConfig
from tests.model.tiny import EXPERTS, stored_tensors, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import Layout, fixed_rollouts, steps_in_layout

# fp32 sums taken in another order differ by about 1e-7 relative; ten operations deep that is well under 1e-5.
RELATIVE = 1e-5

LAYOUTS = {
    "small micro-batches": (1, Layout(capacity=60)),
    "other order": (1, Layout(capacity=150, order=(2, 0, 3, 1))),
    "tp2": (2, Layout(tp=2)),
    "pp2": (2, Layout(pp=2, capacity=100)),
    "dp2": (2, Layout(capacity=80)),
    "dp2 other order": (2, Layout(order=(3, 1, 0, 2))),
    "dp2 at home": (2, Layout(capacity=80, balance=False)),
    "tp2 pp2": (4, Layout(tp=2, pp=2, capacity=120)),
    "tp2 dp2": (4, Layout(tp=2, capacity=90)),
    "tp4": (4, Layout(tp=4)),
}
# Layouts whose parts the algorithm cannot see: checked with those that use most of the loss.
MORE_LAYOUTS = {
    "tp2 sp": (2, Layout(tp=2, sequence=True, capacity=110)),
    "tp4 sp": (4, Layout(tp=4, sequence=True)),
    "cp2": (2, Layout(cp=2, capacity=130)),
    "cp4": (4, Layout(cp=4)),
    "tp2 cp2": (4, Layout(tp=2, cp=2, capacity=120)),
    "tp2 cp2 sp": (4, Layout(tp=2, cp=2, sequence=True, capacity=120)),
    "pp2 cp2": (4, Layout(pp=2, cp=2, capacity=100)),
    "tp2 pp2 sp": (4, Layout(tp=2, pp=2, sequence=True, capacity=100)),
    "dp4": (4, Layout(capacity=70)),
    "dp2 cp2 distributed": (4, Layout(cp=2, capacity=120, distributed=True)),
    "distributed": (1, Layout(distributed=True, capacity=100)),
    "dp2 distributed": (2, Layout(distributed=True, capacity=100)),
    "dp2 overlap": (2, Layout(overlap=True, capacity=100)),
    "dp2 distributed overlap": (2, Layout(distributed=True, overlap=True, capacity=100)),
    "dp4 distributed overlap": (4, Layout(distributed=True, overlap=True, order=(1, 3, 2, 0))),
    "tp2 dp2 sp distributed": (4, Layout(tp=2, sequence=True, distributed=True, overlap=True, capacity=90)),
    "pp2 dp2 distributed": (4, Layout(pp=2, distributed=True, overlap=True, capacity=90)),
    "recompute attention": (1, Layout(recompute="selective", capacity=200)),
    "recompute layers": (1, Layout(recompute="full", capacity=200)),
    "tp2 sp recompute layers": (2, Layout(tp=2, sequence=True, recompute="full", capacity=100)),
    "cp2 recompute attention": (2, Layout(cp=2, recompute="selective", capacity=100)),
    "pp2 recompute layers": (2, Layout(pp=2, recompute="full", capacity=100)),
}
TELLING = ("srpo full", "grpo")


def pairs(layouts: Iterable[str], algorithms: Iterable[str], quick: int) -> list[Any]:
    """Every layout with every algorithm; all but ``quick`` of them are slow, by turns: each has its share."""
    names = list(algorithms)
    turn = itertools.cycle(names)
    found = []
    for layout in layouts:
        first = {next(turn) for _ in range(quick)}
        for name in names:
            marks = () if name in first else pytest.mark.slow
            found.append(pytest.param(layout, name, id=f"{layout}-{name}", marks=marks))
    return found


ALGORITHMS = {
    "srpo": AlgorithmConfig(name="srpo", distillation=DistillationConfig(top_k=20)),
    "srpo full": AlgorithmConfig(name="srpo", distillation=DistillationConfig(vocabulary="full", alpha=0.3)),
    "sdpo": AlgorithmConfig(name="sdpo", aggregation="seq_mean_token_mean"),
    "sdpo sampled": AlgorithmConfig(
        name="sdpo", distillation=DistillationConfig(vocabulary="sampled", alpha=1.0)
    ),
    "grpo": AlgorithmConfig(
        name="grpo",
        policy=PolicyLossConfig(
            kl_coefficient=0.1, entropy_coefficient=0.01, dual_clip=3.0, normalize_by_std=True
        ),
    ),
    "advantage_mix": AlgorithmConfig(name="advantage_mix"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    return str(write_random_qwen3(path, num_key_value_heads=4, tie_word_embeddings=True))


@pytest.fixture(scope="module")
def reference(folder: str) -> dict[str, dict[str, Any]]:
    """Two steps of every algorithm on one rank, everything in one micro-batch."""
    return {
        name: run_ranks(1, steps_in_layout, folder, Layout(), algorithm, {}, 2)[0]
        for name, algorithm in ALGORITHMS.items()
    }


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["denominator"] == expected["denominator"]
    assert got["tokens"][0] == expected["tokens"][0]
    assert got["distill_scale"] == pytest.approx(expected["distill_scale"], rel=RELATIVE)
    assert got["grad_norms"] == pytest.approx(expected["grad_norms"], rel=RELATIVE)
    for name, value in expected["sums"].items():
        assert got["sums"][name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), name
    for name, tensor in expected["weights"].items():
        difference = (got["weights"][name] - tensor).norm() / tensor.norm()
        assert difference < RELATIVE, (name, float(difference))


def assert_same_on_ranks(
    folder: str, case: tuple[int, Layout], name: str, reference: dict[str, dict[str, Any]]
) -> None:
    """Two steps in a layout against those of one rank; the first and the last rank stand for all."""
    world, where = case
    results = run_ranks(world, steps_in_layout, folder, where, ALGORITHMS[name], {}, 2)
    assert_same(results[0], reference[name])
    assert_same(results[-1], reference[name])


@pytest.mark.parametrize(("layout", "name"), pairs(LAYOUTS, ALGORITHMS, quick=2))
def test_two_steps_do_not_depend_on_the_layout(
    folder: str, reference: dict[str, Any], name: str, layout: str
) -> None:
    assert_same_on_ranks(folder, LAYOUTS[layout], name, reference)


@pytest.mark.parametrize(("layout", "name"), pairs(MORE_LAYOUTS, TELLING, quick=1))
def test_two_steps_do_not_depend_on_what_algorithms_cannot_see(
    folder: str, reference: dict[str, Any], name: str, layout: str
) -> None:
    assert_same_on_ranks(folder, MORE_LAYOUTS[layout], name, reference)


@pytest.fixture(scope="module")
def bf16_reference(folder: str) -> dict[str, Any]:
    options = {"dtype": torch.bfloat16}
    return run_ranks(1, steps_in_layout, folder, Layout(), ALGORITHMS["srpo full"], options, 1)[0]


@pytest.mark.parametrize("layout", ["tp2 sp", "cp2", "pp2", "dp2 distributed", "recompute layers"])
def test_bf16_steps_differ_by_its_rounding(folder: str, bf16_reference: dict[str, Any], layout: str) -> None:
    """8 bits: a rounding of 0.4 % in each of some ten operations, mostly averaged out in sums over tokens.

    Adam's first step moves every weight by the learning rate, whichever its gradient's size: where that is
    near 0, rounding decides the sign. So the bound on weights is on the norm of the difference of steps.
    """
    world, where = (LAYOUTS | MORE_LAYOUTS)[layout]
    options = {"dtype": torch.bfloat16}
    got = run_ranks(world, steps_in_layout, folder, where, ALGORITHMS["srpo full"], options, 1)[0]
    assert got["denominator"] == bf16_reference["denominator"]
    assert got["grad_norms"] == pytest.approx(bf16_reference["grad_norms"], rel=2e-2)
    for name in ("policy_loss", "distill_loss", "entropy", "divergence"):
        assert got["sums"][name] == pytest.approx(bf16_reference["sums"][name], rel=2e-2, abs=2e-2), name
    for name, tensor in bf16_reference["weights"].items():
        assert (got["weights"][name] - tensor).norm() / tensor.norm() < 2e-2, name


def test_an_untied_model_over_pipeline_stages(tmp_path: Path) -> None:
    """Tied embeddings take another path through the pipeline (first and last stage share a gradient)."""
    folder = str(write_random_qwen3(tmp_path, tie_word_embeddings=False))
    algorithm = ALGORITHMS["srpo"]
    expected = run_ranks(1, steps_in_layout, folder, Layout(), algorithm, {}, 2)[0]
    got = run_ranks(4, steps_in_layout, folder, Layout(tp=2, pp=2), algorithm, {}, 2)
    assert_same(got[0], expected)


# Six layers: stages of several chunks, and of different sizes.
STAGE_LAYOUTS = {
    "pp2 virtual3": (2, Layout(pp=2, virtual=3, capacity=60)),
    "pp2 virtual3 one micro-batch": (2, Layout(pp=2, virtual=3)),
    "pp3 virtual2": (3, Layout(pp=3, virtual=2, capacity=100)),
    "pp2 first of 1": (2, Layout(pp=2, first=1, capacity=90)),
    "pp2 first of 4, last of 2": (2, Layout(pp=2, first=4, last=2)),
    "pp3 last of 2": (3, Layout(pp=3, last=2, capacity=90)),
    "pp4 first of 2, last of 2": (4, Layout(pp=4, first=2, last=2, capacity=120)),
    "pp2 first of 4 virtual2": (2, Layout(pp=2, first=4, virtual=2, capacity=100)),
    "pp2 first of 4, last of 2, virtual2": (2, Layout(pp=2, first=4, last=2, virtual=2, capacity=100)),
    "pp2 virtual3 dp2 distributed": (
        4,
        Layout(pp=2, virtual=3, distributed=True, overlap=True, capacity=80),
    ),
    "pp2 virtual3 dp2 overlap": (4, Layout(pp=2, virtual=3, overlap=True, capacity=80)),
    "tp2 pp2 virtual3 sp": (4, Layout(tp=2, pp=2, virtual=3, sequence=True, capacity=110)),
    "pp2 cp2 virtual3": (4, Layout(pp=2, cp=2, virtual=3, capacity=130)),
    "pp2 virtual3 recompute layers": (2, Layout(pp=2, virtual=3, recompute="full", capacity=80)),
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("deep")
    sizes = {"num_hidden_layers": 6, "num_key_value_heads": 4}
    return str(write_random_qwen3(path, **sizes, tie_word_embeddings=True))


@pytest.fixture(scope="module")
def deep_reference(deep: str) -> dict[str, dict[str, Any]]:
    return {
        name: run_ranks(1, steps_in_layout, deep, Layout(), ALGORITHMS[name], {}, 2)[0] for name in TELLING
    }


@pytest.mark.parametrize(("layout", "name"), pairs(STAGE_LAYOUTS, TELLING, quick=1))
def test_two_steps_do_not_depend_on_the_stages(
    deep: str, deep_reference: dict[str, Any], name: str, layout: str
) -> None:
    assert_same_on_ranks(deep, STAGE_LAYOUTS[layout], name, deep_reference)


def test_an_untied_model_over_interleaved_stages(tmp_path: Path) -> None:
    folder = str(write_random_qwen3(tmp_path, num_hidden_layers=4, tie_word_embeddings=False))
    algorithm = ALGORITHMS["srpo"]
    expected = run_ranks(1, steps_in_layout, folder, Layout(), algorithm, {}, 2)[0]
    got = run_ranks(2, steps_in_layout, folder, Layout(pp=2, virtual=2, capacity=120), algorithm, {}, 2)
    assert_same(got[0], expected)


EXPERT_LAYOUTS = {
    "small micro-batches": (1, Layout(capacity=60)),
    "ep2": (2, Layout(ep=2)),
    # Replicas differ in the number of micro-batches, and meet at the experts all the same.
    "ep2 small micro-batches": (2, Layout(ep=2, capacity=60)),
    "ep2 other order": (2, Layout(ep=2, order=(3, 1, 0, 2))),
    "ep2 at home": (2, Layout(ep=2, capacity=60, balance=False)),
    "dp2": (2, Layout(capacity=80)),
    "ep4": (4, Layout(ep=4, capacity=90)),
    "ep2 dp2": (4, Layout(ep=2, capacity=100)),
    "ep2 pp2": (4, Layout(ep=2, pp=2, capacity=70)),
    "tp2 sp ep2": (2, Layout(tp=2, ep=2, sequence=True, capacity=100)),
    "tp2 sp ep4 distributed": (4, Layout(tp=2, ep=4, sequence=True, distributed=True, capacity=100)),
    "cp2 ep2": (2, Layout(cp=2, ep=2, capacity=100)),
    "cp2 ep4": (4, Layout(cp=2, ep=4, capacity=100)),
    "ep2 distributed overlap": (2, Layout(ep=2, distributed=True, overlap=True, capacity=80)),
    "ep2 pp2 overlap": (4, Layout(ep=2, pp=2, overlap=True, capacity=60)),
    "ep2 recompute layers": (2, Layout(ep=2, recompute="full", capacity=80)),
    "pp2 virtual2": (2, Layout(pp=2, virtual=2, capacity=80)),
    "ep2 pp2 virtual2 distributed": (4, Layout(ep=2, pp=2, virtual=2, distributed=True, capacity=70)),
    "ep2 pp2 last of 1": (4, Layout(ep=2, pp=2, last=1, capacity=70)),
}
EXPERT_ALGORITHMS = ("srpo", "grpo")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mixture")
    # Eight experts, so that some get no token of a small micro-batch.
    sizes = {**EXPERTS, "num_experts": 8, "num_hidden_layers": 4}
    return str(write_random_qwen3(path, **sizes, tie_word_embeddings=True))


@pytest.fixture(scope="module")
def mixture_reference(mixture: str) -> dict[str, dict[str, Any]]:
    return {
        name: run_ranks(1, steps_in_layout, mixture, Layout(), ALGORITHMS[name], {}, 2)[0]
        for name in EXPERT_ALGORITHMS
    }


@pytest.mark.parametrize(("layout", "name"), pairs(EXPERT_LAYOUTS, EXPERT_ALGORITHMS, quick=1))
def test_two_steps_of_experts_do_not_depend_on_the_layout(
    mixture: str, mixture_reference: dict[str, Any], name: str, layout: str
) -> None:
    assert_same_on_ranks(mixture, EXPERT_LAYOUTS[layout], name, mixture_reference)


def test_routers_and_experts_learn(mixture: str, mixture_reference: dict[str, Any]) -> None:
    """Weight decay alone moves a weight by 1e-5 of itself; Adam's first step by up to the rate, 1e-3."""
    before = stored_tensors(mixture)
    moved = {
        name: bool((tensor - before[name]).abs().max() > 5e-4)
        for name, tensor in mixture_reference["srpo"]["weights"].items()
    }
    assert all(moved[name] for name in moved if name.endswith("mlp.gate.weight"))
    # An expert that no token of a response came to stays as it is; with 8 experts, 2 a token, few do.
    experts = [moved[name] for name in moved if ".experts." in name]
    assert len(experts) == 4 * 8 * 3 and sum(experts) > 0.75 * len(experts)


def test_no_padding_is_computed(reference: dict[str, Any], folder: str) -> None:
    """As many tokens as the batch has; where they are cut evenly, fewer than one cut per sequence more."""
    batch = [rollout.sequence for rollout in fixed_rollouts(seed=3)]
    for result in reference.values():
        tokens, computed = result["tokens"]
        assert tokens == computed <= sum(len(sequence.inputs) for sequence in batch)
    layout = Layout(tp=2, cp=2, sequence=True)
    tokens, computed = run_ranks(4, steps_in_layout, folder, layout, ALGORITHMS["srpo"], {})[0]["tokens"]
    assert tokens == reference["srpo"]["tokens"][0] < computed < tokens + 4 * len(batch)


def test_the_reference_steps_do_something(reference: dict[str, Any]) -> None:
    """Guards the tests above against comparing zeros."""
    for name, result in reference.items():
        assert all(norm > 1e-3 for norm in result["grad_norms"]), name
        routed = result["sums"]["policy_tokens"] + result["sums"]["distill_tokens"]
        assert routed == result["sums"]["routed_tokens"] > 0
    assert reference["srpo"]["sums"]["distill_tokens"] > 0 < reference["srpo"]["sums"]["policy_tokens"]
    weight = reference["srpo"]["sums"]["distill_weight"] / reference["srpo"]["sums"]["distill_tokens"]
    assert weight == pytest.approx(1.0, rel=1e-5)  # fp32 sum of weights normalised in float64


def test_weights_differ_between_algorithms(reference: dict[str, Any]) -> None:
    names = list(reference)
    for one, other in itertools.pairwise(names):
        pairs = zip(reference[one]["weights"].values(), reference[other]["weights"].values(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), (one, other)
