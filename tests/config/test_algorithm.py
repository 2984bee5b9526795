"""The constants of the algorithms: the papers' values as defaults, and every refusal."""

from typing import Any

import pytest

from megatron_srpo.algorithms import build_algorithm
from megatron_srpo.config.algorithm import (
    ALGORITHM_NAMES,
    AlgorithmConfig,
    DistillationConfig,
    PolicyLossConfig,
)
from megatron_srpo.config.base import Config
from megatron_srpo.config.loader import build
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError


def test_the_papers_values_are_the_defaults() -> None:
    """docs/algorithms.md, sections 1 to 5 and 9."""
    config = AlgorithmConfig()
    assert (config.name, config.success_threshold, config.mix_lambda) == ("srpo", 0.5, 0.9)
    assert (config.engine_importance_cap, config.aggregation, config.feedback) == (2.0, "token_mean", False)
    policy = config.policy
    assert (policy.clip_low, policy.clip_high, policy.dual_clip) == (0.2, 0.28, None)
    assert (policy.normalize_by_std, policy.kl_coefficient, policy.entropy_coefficient) == (False, 0.0, 0.0)
    distillation = config.distillation
    assert (distillation.alpha, distillation.vocabulary, distillation.top_k) == (0.5, "topk", 100)
    assert (distillation.tail, distillation.entropy_beta, distillation.importance_cap) == (True, 1.0, 2.0)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (AlgorithmConfig, "name", "ppo"),
        (AlgorithmConfig, "engine_importance_cap", 0.5),
        (AlgorithmConfig, "mix_lambda", 1.5),
        (AlgorithmConfig, "mix_lambda", -0.1),
        (AlgorithmConfig, "aggregation", "sum"),
        (AlgorithmConfig, "success_threshold", float("nan")),
        (AlgorithmConfig, "success_threshold", float("inf")),
        (PolicyLossConfig, "clip_low", -0.1),
        (PolicyLossConfig, "clip_low", 1.1),
        (PolicyLossConfig, "clip_high", -0.1),
        (PolicyLossConfig, "dual_clip", 0.5),
        (PolicyLossConfig, "kl_coefficient", -1e-3),
        (PolicyLossConfig, "entropy_coefficient", -1e-3),
        (DistillationConfig, "alpha", -0.1),
        (DistillationConfig, "alpha", 1.1),
        (DistillationConfig, "vocabulary", "top-k"),
        (DistillationConfig, "top_k", 0),
        (DistillationConfig, "entropy_beta", -1.0),
        (DistillationConfig, "importance_cap", 0.9),
    ],
)
def test_impossible_values_are_named(cls: type[Config], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{key} = {value!r}"):
        cls(**{key: value})


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999])
def test_the_sampled_token_alone_needs_reverse_kl(alpha: float) -> None:
    """On the sampled token only log pi - log q is known, which is reverse KL's integrand (section 4)."""
    message = rf"algorithm\.distillation\.vocabulary = sampled needs alpha = 1 .* not {alpha}"
    with pytest.raises(ConfigError, match=message):
        DistillationConfig(vocabulary="sampled", alpha=alpha)
    assert DistillationConfig(vocabulary="sampled", alpha=1).alpha == 1


def test_a_refusal_in_a_file_names_the_whole_key() -> None:
    tree = {"model": {"path": "x"}, "algorithm": {"distillation": {"vocabulary": "sampled"}}}
    with pytest.raises(ConfigError, match=r"^algorithm\.distillation\.vocabulary = sampled needs"):
        build(RunConfig, tree)


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_every_name_builds_an_algorithm_with_its_constants(name: str) -> None:
    config = AlgorithmConfig(name=name, mix_lambda=0.3)
    assert build_algorithm(config).config is config  # type: ignore[attr-defined]
