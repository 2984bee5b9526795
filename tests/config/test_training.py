"""Batch arithmetic and the bounds of optimizer, teacher and checkpoints."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.config.base import Config
from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.config.training import (
    CheckpointConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainingConfig,
    mini_batch_prompts,
)
from megatron_srpo.errors import ConfigError


@pytest.mark.parametrize(
    ("per_mini_batch", "per_step", "replicas", "expected"),
    [(None, 32, 1, 32), (None, 32, 4, 32), (8, 32, 1, 8), (8, 32, 8, 8), (32, 32, 2, 32), (1, 3, 1, 1)],
)
def test_mini_batch_prompts(per_mini_batch: int | None, per_step: int, replicas: int, expected: int) -> None:
    training = TrainingConfig(prompts_per_mini_batch=per_mini_batch)
    assert mini_batch_prompts(training, per_step, replicas) == expected


@pytest.mark.parametrize(("per_mini_batch", "per_step"), [(5, 32), (64, 32), (31, 32)])
def test_mini_batches_that_do_not_fill_a_step_are_refused(per_mini_batch: int, per_step: int) -> None:
    message = (
        rf"rollout\.prompts_per_step = {per_step} is not a multiple of "
        rf"training\.prompts_per_mini_batch = {per_mini_batch}"
    )
    with pytest.raises(ConfigError, match=message):
        mini_batch_prompts(TrainingConfig(prompts_per_mini_batch=per_mini_batch), per_step, 1)


@pytest.mark.parametrize(("per_mini_batch", "per_step", "replicas"), [(None, 32, 3), (8, 32, 16), (2, 32, 4)])
def test_replicas_that_cannot_share_evenly_are_refused(
    per_mini_batch: int | None, per_step: int, replicas: int
) -> None:
    prompts = per_mini_batch or per_step
    with pytest.raises(ConfigError, match=rf"{prompts} prompts .* evenly by {replicas} data-parallel"):
        mini_batch_prompts(TrainingConfig(prompts_per_mini_batch=per_mini_batch), per_step, replicas)


sizes = st.integers(min_value=1, max_value=64)


@settings(deadline=None)
@given(st.none() | sizes, sizes, st.integers(min_value=1, max_value=8))
def test_an_accepted_mini_batch_divides_everything(
    per_mini_batch: int | None, per_step: int, replicas: int
) -> None:
    wanted = per_mini_batch or per_step
    even = per_step % wanted == 0 and wanted % replicas == 0
    training = TrainingConfig(prompts_per_mini_batch=per_mini_batch)
    if even:
        assert mini_batch_prompts(training, per_step, replicas) == wanted
    else:
        with pytest.raises(ConfigError):
            mini_batch_prompts(training, per_step, replicas)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (OptimizerConfig, "learning_rate", -1e-6),
        (OptimizerConfig, "min_learning_rate", -1.0),
        (OptimizerConfig, "schedule", "step"),
        (OptimizerConfig, "warmup_steps", -1),
        (OptimizerConfig, "weight_decay", -0.1),
        (OptimizerConfig, "beta1", 1.1),
        (OptimizerConfig, "beta2", -0.1),
        (OptimizerConfig, "epsilon", -1e-8),
        (OptimizerConfig, "grad_clip", -1.0),
        (TrainingConfig, "steps", -1),
        (TrainingConfig, "prompts_per_mini_batch", 0),
        (TrainingConfig, "micro_batch_tokens", 0),
        (TrainingConfig, "distributed_timeout_s", 0.5),
        (TeacherConfig, "mode", "momentum"),
        (TeacherConfig, "ema_rate", 1.5),
        (TeacherConfig, "trust_region_rate", -0.5),
        (CheckpointConfig, "every", -1),
        (CheckpointConfig, "keep", 0),
        (ModelConfig, "dtype", "float16"),
        (ModelConfig, "vocab_multiple", 0),
        (ModelConfig, "layers", "apex"),
        (ModelConfig, "fp8", "nvfp4"),
        (ModelConfig, "fp8_passes", "teacher"),
        (ParallelConfig, "tensor", 0),
        (ParallelConfig, "pipeline", 0),
    ],
)
def test_impossible_values_are_named(cls: type[Config], key: str, value: Any) -> None:
    needed = {"path": "x"} if cls is ModelConfig else {}
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{key} = {value!r}"):
        cls(**needed, **{key: value})


def test_the_papers_values_are_the_defaults() -> None:
    """docs/algorithms.md, section 9, column SRPO; section 7 for the teacher."""
    optimizer = OptimizerConfig()
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (5e-6, 10, 0.01)
    assert (optimizer.grad_clip, optimizer.schedule) == (1.0, "constant")
    assert (TeacherConfig().mode, TeacherConfig().ema_rate) == ("ema", 0.05)
    assert TrainingConfig().prompts_per_mini_batch is None


BF16 = {"path": "x", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"layers": "transformer_engine", "dtype": "float32"},
            "'transformer_engine' with model.dtype = 'float32'",
        ),
        ({"fp8": "tensorwise", "dtype": "float32"}, "needs model.dtype = 'bfloat16'"),
        ({"fp8": "tensorwise", "layers": "local"}, "model.layers is 'local'"),
        ({"fp8": "delayed", "fp8_passes": "all"}, "learnt in training"),
        ({"fp8_params": True}, "set model.fp8 to a recipe"),
        ({"fp8_params": True, "fp8": "delayed"}, "rounded by scales"),
        ({"fp8_params": True, "fp8": "mxfp8"}, "gradients' memory"),
        ({"fp8_params": True, "fp8": "blockwise", "fp8_passes": "training"}, "no weights in bfloat16"),
    ],
)
def test_precisions_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelConfig(**{**BF16, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"fp8": "delayed"},
        {"fp8": "mxfp8", "fp8_passes": "all", "layers": "transformer_engine"},
        {"fp8": "blockwise", "fp8_params": True},
        {"fp8": "tensorwise", "fp8_params": True, "fp8_passes": "all"},
    ],
)
def test_precisions_that_go_together(options: dict[str, Any]) -> None:
    assert ModelConfig(**BF16, **options).fp8 == options["fp8"]
