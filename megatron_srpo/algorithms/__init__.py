"""Algorithms as producers of per-token streams. Adding one: a file here and a line in ``_TABLE``."""

from collections.abc import Callable

from megatron_srpo.algorithms import grpo, sdpo, srpo
from megatron_srpo.algorithms.advantage_mix import AdvantageMix
from megatron_srpo.algorithms.routed import RoutedAlgorithm
from megatron_srpo.algorithms.types import Algorithm
from megatron_srpo.config.algorithm import AlgorithmConfig

_TABLE: dict[str, Callable[[AlgorithmConfig], Algorithm]] = {
    "srpo": lambda config: RoutedAlgorithm(config, srpo.route),
    "grpo": lambda config: RoutedAlgorithm(config, grpo.route),
    "sdpo": lambda config: RoutedAlgorithm(config, sdpo.route),
    "advantage_mix": lambda config: AdvantageMix(config, grpo.route),
}


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """Return the algorithm named by ``config.name`` (checked when the config was built)."""
    return _TABLE[config.name](config)


__all__ = ["Algorithm", "build_algorithm"]
