"""The run's configuration: what its sections must agree on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.base import Config, field_types
from megatron_srpo.config.data import DataConfig, TeacherPromptConfig
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.model import ModelConfig
from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.training import OptimizerConfig, TeacherConfig, TrainingConfig
from megatron_srpo.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run_config(**sections: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(path="model"), **sections)


def test_a_model_is_all_that_must_be_named() -> None:
    config = run_config()
    assert (config.seed, config.output_dir, config.algorithm.name) == (1, "runs/run", "srpo")
    assert config.rollout.responses_per_step == 256


def test_the_model_is_required() -> None:
    with pytest.raises(ConfigError, match=r"missing config key 'model': The policy at step 0"):
        load_config(RunConfig, None)
    with pytest.raises(ConfigError, match=r"missing config key 'model\.path': Folder of a Qwen3"):
        load_config(RunConfig, None, ["model.dtype=bfloat16"])


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RunConfig\.seed = -1 is too small"):
        run_config(seed=-1)


def test_mini_batches_must_fill_the_step() -> None:
    with pytest.raises(ConfigError, match=r"prompts_per_step = 32 is not a multiple .* = 5"):
        run_config(training=TrainingConfig(prompts_per_mini_batch=5))


class TestMicroBatches:
    """A micro-batch must hold the longest sequence there can be."""

    DATA = DataConfig(max_prompt_tokens=100, teacher=TeacherPromptConfig(max_prompt_tokens=150))
    ROLLOUT = RolloutConfig(max_response_tokens=50)

    def config(self, capacity: int, algorithm: str = "srpo") -> RunConfig:
        return run_config(
            data=self.DATA,
            rollout=self.ROLLOUT,
            algorithm=AlgorithmConfig(name=algorithm),
            training=TrainingConfig(micro_batch_tokens=capacity),
        )

    @pytest.mark.parametrize("algorithm", ["srpo", "sdpo", "advantage_mix", "grpo"])
    def test_too_small_for_a_prompt_and_a_response(self, algorithm: str) -> None:
        message = (
            r"training\.micro_batch_tokens = 149 .*"
            r"data\.max_prompt_tokens \+ rollout\.max_response_tokens = 150 tokens; raise it to 150"
        )
        with pytest.raises(ConfigError, match=message):
            self.config(149, algorithm)

    @pytest.mark.parametrize("algorithm", ["srpo", "sdpo", "advantage_mix"])
    def test_too_small_for_a_teacher_prompt_and_a_response(self, algorithm: str) -> None:
        message = (
            r"training\.micro_batch_tokens = 199 .*"
            r"data\.teacher\.max_prompt_tokens \+ rollout\.max_response_tokens = 200 tokens"
        )
        with pytest.raises(ConfigError, match=message):
            self.config(199, algorithm)

    def test_grpo_has_no_teacher_to_make_room_for(self) -> None:
        assert self.config(150, "grpo").training.micro_batch_tokens == 150

    def test_exactly_large_enough(self) -> None:
        assert self.config(200).training.micro_batch_tokens == 200


def test_feedback_needs_the_verifiers_remarks() -> None:
    """Otherwise the switch would silently do nothing."""
    algorithm = AlgorithmConfig(feedback=True)
    with pytest.raises(
        ConfigError, match=r"algorithm\.feedback = True .* reward\.environment_feedback = False"
    ):
        run_config(algorithm=algorithm)
    config = run_config(algorithm=algorithm, reward=RewardConfig(environment_feedback=True))
    assert config.algorithm.feedback


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.temperature=0", r"^rollout\.temperature = 0\.0; give a finite number above 0"),
        ("rollout.top_p=0", r"^rollout\.top_p = 0\.0"),
        ("evaluation.pass_k=5", r"^evaluation\.pass_k = 5 needs at least as many samples"),
        ("optimizer.schedule=step", r"^optimizer\.schedule = 'step'; choose one of constant, linear, cosine"),
        (
            "data.train.0.family=null",
            r"^data\.train\.0: a source of kind 'reasoning_gym' needs the key 'family'",
        ),
        ("data.teacher.template=Hm", r"^data\.teacher: template 'Hm' lacks the placeholder \{question\}"),
        ("report.wandb.project=''", r"^report\.wandb\.project = '' is empty"),
        ("rollout.sample_per_prompt=4", r"^unknown config key 'rollout\.sample_per_prompt'; did you mean"),
        ("training.steps=1.5", r"^training\.steps = 1\.5 is a number; expected integer"),
        ("reward.time_limit_s=0", r"^reward\.time_limit_s = 0\.0; give a positive number"),
    ],
)
def test_a_refusal_starts_with_the_key_as_written(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, ROOT / "examples" / "quickstart.yaml", [override])


def sections(cls: type[Config]) -> list[type[Config]]:
    kinds = [
        kind for kind in field_types(cls).values() if isinstance(kind, type) and issubclass(kind, Config)
    ]
    return [cls, *(inner for kind in kinds for inner in sections(kind))]


@pytest.mark.parametrize("cls", sections(RunConfig), ids=lambda cls: cls.__name__)
def test_every_key_is_explained(cls: type[Config]) -> None:
    fields = cls.__dataclass_fields__.values()
    unexplained = [field.name for field in fields if not field.metadata.get("help")]
    assert unexplained == []
    assert cls.__doc__


class TestMatricesInFp8:
    """Their fp32 values are the optimizer's alone."""

    MODEL = ModelConfig(path="model", dtype="bfloat16", fp8="blockwise", fp8_params=True)

    def config(self, **sections: Any) -> RunConfig:
        return RunConfig(model=self.MODEL, **sections)

    def test_a_distributed_optimizer_keeps_them(self) -> None:
        assert self.config().model.fp8_params
        with pytest.raises(ConfigError, match=r"needs optimizer\.distributed = True"):
            self.config(optimizer=OptimizerConfig(distributed=False))

    def test_they_are_not_made_from_weights_that_visit(self) -> None:
        with pytest.raises(ConfigError, match=r"optimizer\.offload = True.*rounded twice"):
            self.config(optimizer=OptimizerConfig(offload=True))

    @pytest.mark.parametrize("mode", ["live", "trust_region"])
    def test_a_live_teacher_has_no_other_weights(self, mode: str) -> None:
        teacher = TeacherConfig(mode=mode)
        with pytest.raises(ConfigError, match=rf"'{mode}', which asks the policy.*fp8_passes=all"):
            self.config(teacher=teacher)
        everywhere = replace(self.MODEL, fp8_passes="all")
        assert RunConfig(model=everywhere, teacher=teacher).teacher.mode == mode
        assert self.config(teacher=teacher, algorithm=AlgorithmConfig(name="grpo")).model.fp8_params
