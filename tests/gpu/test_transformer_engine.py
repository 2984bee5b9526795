"""Layers of Transformer Engine in bfloat16 on a GPU, against transformers and against the local layers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.engine import ENGINE, LOCAL, need_engine, on_gpu, response_log_probs, write_model
from tests.model.tiny import EXPERTS, reference_logits
from tests.training.harness import Layout, fixed_rollouts

pytestmark = pytest.mark.gpu

SEQUENCES = [[5, 17, 80, 3, 3, 60, 12], [9], [44, 2, 2, 91, 8, 30, 31, 32, 33, 1, 0], list(range(90))]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    need_engine()
    return write_model(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The norms of one layer lie in its products, those of the others stand by themselves."""
    need_engine()
    options = {**EXPERTS, "moe_intermediate_size": 128, "mlp_only_layers": [1]}
    return write_model(tmp_path_factory.mktemp("mixture"), **options)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_logits_equal_those_of_transformers(kind: str, request: pytest.FixtureRequest) -> None:
    """bf16 rounds every product by up to 0.4 %; over four layers that stays within 3 % of the logits' size.

    A token whose experts are a near tie may choose others in bf16, so of a mixture the typical error counts.
    """
    folder = request.getfixturevalue(kind)
    found = on_gpu("logits", Layout(layers=ENGINE), folder=folder, sequences=SEQUENCES)
    expected_TV = torch.cat(reference_logits(folder, SEQUENCES))
    error_T = (found["logits"] - expected_TV).norm(dim=1) / expected_TV.norm(dim=1)
    assert float(error_T.median()) < 0.03
    if kind == "dense":
        assert float(error_T.max()) < 0.06
    assert any(local != name for local, name in found["names"].items())


def near(found: dict[str, float], expected: dict[str, float], relative: float) -> None:
    """Compare the sums of a step, but for the policy loss: near 0 at the first step, it is rounding alone."""
    for name, value in expected.items():
        if name not in ("policy_loss", "kl_old_new", "clipped_low", "clipped_high"):
            assert found[name] == pytest.approx(value, rel=relative, abs=relative), name


@pytest.mark.parametrize("algorithm", ["grpo", "srpo"])
def test_steps_equal_those_of_local_layers(dense: str, algorithm: str) -> None:
    """Both round in bf16, in other places: 2 % of the sums, 5 % of the gradient's norm."""
    engine, local = (
        on_gpu("steps", Layout(layers=layers), folder=dense, algorithm=algorithm)
        for layers in (ENGINE, LOCAL)
    )
    near(engine["sums"], local["sums"], 0.02)
    assert engine["grad_norms"] == pytest.approx(local["grad_norms"], rel=0.05)
    assert float((engine["log_probs"] - local["log_probs"]).abs().mean()) < 0.02


def test_steps_of_experts_equal_those_of_local_layers(mixture: str) -> None:
    """Near ties between experts go either way in bf16: 5 % of the sums, 15 % of the gradient's norm."""
    engine, local = (
        on_gpu("steps", Layout(layers=layers), folder=mixture, algorithm="grpo") for layers in (ENGINE, LOCAL)
    )
    near(engine["sums"], local["sums"], 0.05)
    assert engine["grad_norms"] == pytest.approx(local["grad_norms"], rel=0.15)


def test_log_probs_agree_with_the_exported_model(dense: str, tmp_path: Path) -> None:
    """What the engine would say after a synchronisation: transformers in fp32 on the exported weights."""
    target = str(tmp_path / "exported")
    found = on_gpu("export", Layout(layers=ENGINE), folder=dense, target=target)
    expected = response_log_probs(target, [rollout.sequence for rollout in fixed_rollouts()])
    difference = (torch.cat(found["log_probs"]) - torch.cat(expected)).abs()
    assert float(difference.mean()) < 0.02 and float(difference.max()) < 0.2


@pytest.mark.gpu(2)
@pytest.mark.parametrize("split", [{"tp": 2}, {"tp": 2, "sequence": True}, {"cp": 2}, {"pp": 2}])
def test_two_gpus_equal_one(dense: str, split: dict[str, Any]) -> None:
    """Sums are split in other places, in bf16: 1 % of the sums, 3 % of the gradient's norm."""
    two = on_gpu("steps", Layout(layers=ENGINE, **split), ranks=2, folder=dense, algorithm="srpo")
    one = on_gpu("steps", Layout(layers=ENGINE), folder=dense, algorithm="srpo")
    near(two["sums"], one["sums"], 0.01)
    assert two["grad_norms"] == pytest.approx(one["grad_norms"], rel=0.03)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(dense: str, recompute: str) -> None:
    """The forward pass is the same bit for bit; attention's backward adds up in an order that changes."""
    plain, again = (
        on_gpu("steps", Layout(layers=ENGINE, recompute=kind), folder=dense, algorithm="srpo")
        for kind in ("none", recompute)
    )
    assert again["sums"] == pytest.approx(plain["sums"], rel=1e-6)
    assert again["grad_norms"][0] == pytest.approx(plain["grad_norms"][0], rel=1e-3)


def test_recomputation_saves_memory(tmp_path: Path) -> None:
    """Eight layers of 8 x 1,000 tokens: without, each keeps about 15 times its input."""
    need_engine()
    folder = write_model(tmp_path, num_hidden_layers=8)
    plain, again = (
        on_gpu("memory", Layout(layers=ENGINE, recompute=kind, capacity=8192), folder=folder, tokens=1000)
        for kind in ("none", "full")
    )
    assert again["peak"] < 0.7 * plain["peak"]


@pytest.mark.parametrize("kind", ["dense", "mixture"])
@pytest.mark.parametrize("first", ["local", "engine"])
@pytest.mark.parametrize("distributed", [False, True])
def test_a_checkpoint_goes_on_with_other_layers(
    kind: str, first: str, distributed: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The weights are the same bit for bit, and the next gradient as far as bf16 allows."""
    folder = request.getfixturevalue(kind)
    one, other = (LOCAL, ENGINE) if first == "local" else (ENGINE, LOCAL)
    layout = Layout(layers=one, distributed=distributed)
    before = on_gpu("save", layout, folder=folder, root=str(tmp_path))
    layout = Layout(layers=other, distributed=distributed)
    after = on_gpu("resume", layout, folder=folder, saved=str(tmp_path / "step_00000001"))
    for name, tensor in before["weights"].items():
        assert torch.equal(after["weights"][name], tensor), name
    assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=0.05)
