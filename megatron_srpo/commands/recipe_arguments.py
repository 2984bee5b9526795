"""A run by configuration file or by recipe: the arguments that several commands share."""

import argparse
from collections.abc import Sequence

from megatron_srpo.commands.common import positive_integer
from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import load_config, read_yaml
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.papers import TRAINABLE
from megatron_srpo.launch.recipes import DEFAULT_BENCHMARK, recipe_config
from megatron_srpo.launch.self_play_recipes import SELF_PLAY_RECIPES, self_play_config

#: What the overrides of a launch begin with, among those of the run.
OWN = "launch."


def add_recipe_arguments(parser: argparse.ArgumentParser, model: bool = True) -> None:
    """Declare ``--recipe`` and what goes with it.

    Args:
        model: also ``--model``, where the command has no such option of its own.
    """
    parser.add_argument("--recipe", metavar="NAME", help="a recipe, such as qwen3-8b-srpo; no --config")
    if model:
        parser.add_argument(
            "--model", metavar="FOLDER", help="the recipe's model (default models/Qwen3-SIZE)"
        )
    add_benchmark_arguments(parser)


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a recipe trains on."""
    parser.add_argument(
        "--benchmark",
        choices=TRAINABLE,
        metavar="NAME",
        help=f"what the recipe trains on: {', '.join(TRAINABLE)} (default {DEFAULT_BENCHMARK})",
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="the benchmark as prepared (default data/BENCHMARK; docs/data.md)"
    )


def add_gpus_per_node(parser: argparse.ArgumentParser) -> None:
    """Declare ``--gpus-per-node N``."""
    parser.add_argument("--gpus-per-node", type=positive_integer, default=8, metavar="N", help="default 8")


def nodes_of(gpus: int | None, gpus_per_node: int) -> tuple[int, int]:
    """Return nodes, and GPUs of each, of a job of so many GPUs (None: one node).

    Raises:
        ConfigError: they are no whole number of nodes.
    """
    if gpus is None or gpus <= gpus_per_node:
        return 1, gpus or gpus_per_node
    if gpus % gpus_per_node:
        raise ConfigError(f"--gpus {gpus} are no whole nodes of {gpus_per_node}; see --gpus-per-node")
    return gpus // gpus_per_node, gpus_per_node


def run_or_recipe(
    arguments: argparse.Namespace,
    overrides: Sequence[str],
    *,
    nodes: int = 1,
    gpus_per_node: int = 8,
    placement: str = "colocated",
) -> RunConfig:
    """Return the configuration that ``--config`` or ``--recipe`` names.

    Args:
        overrides: changes of the run's keys.
        nodes, gpus_per_node, placement: of a recipe.

    Raises:
        ConfigError: both are given, or something that cannot be used.
    """
    given = {name: vars(arguments).get(name) for name in ("model", "benchmark", "data")}
    if arguments.recipe is None:
        for name, value in given.items():
            if value:
                raise ConfigError(f"--{name} is for --recipe; with --config, set model.path and data.train")
        return load_config(RunConfig, arguments.config, overrides)
    if arguments.config is not None:
        raise ConfigError("--recipe and --config; give one of them")
    return recipe_config(
        arguments.recipe,
        model=given["model"],
        benchmark=given["benchmark"] or DEFAULT_BENCHMARK,
        data=given["data"],
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        placement=placement,
        overrides=overrides,
    )


def run_self_play_or_recipe(
    arguments: argparse.Namespace,
    overrides: Sequence[str],
    *,
    nodes: int,
    gpus_per_node: int,
    placement: str,
) -> RunConfig | SelfPlayConfig:
    """Return what :func:`run_or_recipe` does, or a self-play where ``--config`` or ``--recipe`` names one."""
    if arguments.recipe in SELF_PLAY_RECIPES and arguments.config is None:
        if arguments.benchmark:
            raise ConfigError(f"--benchmark has no meaning for {arguments.recipe}: it writes its questions")
        return self_play_config(
            arguments.recipe,
            model=arguments.model,
            data=arguments.data,
            num_nodes=nodes,
            gpus_per_node=gpus_per_node,
            overrides=overrides,
        )
    if arguments.recipe is None and arguments.config and "solver" in read_yaml(arguments.config):
        return load_config(SelfPlayConfig, arguments.config, overrides)
    return run_or_recipe(arguments, overrides, nodes=nodes, gpus_per_node=gpus_per_node, placement=placement)


def launch_config(file: str | None, overrides: Sequence[str]) -> tuple[LaunchConfig, list[str]]:
    """Return the configuration of a launch, and the overrides that are the run's.

    Raises:
        ConfigError: a file, key or value that cannot be used.
    """
    own = [item.removeprefix(OWN) for item in overrides if item.startswith(OWN)]
    return load_config(LaunchConfig, file, own), [item for item in overrides if not item.startswith(OWN)]
