"""A teacher in host memory teaches the same."""

from typing import Any

import pytest
import torch

from megatron_srpo import platform
from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import TeacherConfig
from megatron_srpo.training.offload import HostWeights
from tests.model.tiny import write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import Layout, fixed_rollouts, full_weights, make_trainer, train_step


def test_parameters_visit_the_device_and_come_back() -> None:
    model = torch.nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    weights = HostWeights(model)
    at_home = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="in the pass"), weights.on_device() as visiting:
        assert all(parameter.device == platform.device() for parameter in visiting.parameters())
        assert not {parameter.data_ptr() for parameter in visiting.parameters()} & set(at_home)
        raise RuntimeError("in the pass")
    assert [parameter.data_ptr() for parameter in model.parameters()] == at_home
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))
    with torch.no_grad():
        model.weight.add_(1.0)  # as the teacher's update does
    with weights.on_device() as visiting:
        assert torch.equal(visiting.weight, before[0] + 1.0)


def two_steps(
    rank: int, world: int, folder: str, mode: str, offload: bool, dtype: torch.dtype
) -> dict[str, Any]:
    groups = Layout(tp=2).initialize()
    teacher = TeacherConfig(mode=mode, ema_rate=0.3, offload=offload)
    trainer = make_trainer(folder, groups, AlgorithmConfig(name="srpo"), teacher, dtype=dtype)
    results = [train_step(trainer, fixed_rollouts(seed=seed)) for seed in (3, 4)]
    assert trainer.teacher.copy is not None
    held = [parameter.detach().clone() for parameter in trainer.teacher.copy.parameters()]
    sums = [result.sums for result in results if result is not None]
    return {"sums": sums, "weights": full_weights(trainer, folder), "teacher": held}


@pytest.mark.parametrize(
    ("mode", "dtype"), [("ema", torch.float32), ("ema", torch.bfloat16), ("trust_region", torch.float32)]
)
def test_training_is_the_same_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, mode: str, dtype: torch.dtype
) -> None:
    folder = str(write_random_qwen3(tmp_path_factory.mktemp("model")))
    kept = run_ranks(2, two_steps, folder, mode, False, dtype)[0]
    offloaded = run_ranks(2, two_steps, folder, mode, True, dtype)[0]
    assert kept["sums"] == offloaded["sums"]
    assert all(torch.equal(offloaded["weights"][name], value) for name, value in kept["weights"].items())
    assert all(torch.equal(a, b) for a, b in zip(kept["teacher"], offloaded["teacher"], strict=True))
