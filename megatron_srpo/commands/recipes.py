"""List the recipes, or write one as the YAML that ``megatron-srpo train`` or ``self-play`` reads.

A recipe is an algorithm with its paper's settings on a size of Qwen3 and a benchmark, or a self-play, in a
layout for the GPUs that are given (docs/recipes.md).
"""

import argparse
import difflib
from pathlib import Path

from megatron_srpo.commands.common import positive_integer
from megatron_srpo.commands.recipe_arguments import add_benchmark_arguments, add_gpus_per_node
from megatron_srpo.config.loader import to_yaml
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.layouts import LAYOUTS, choose_layout
from megatron_srpo.launch.papers import PAPERS
from megatron_srpo.launch.recipes import DEFAULT_BENCHMARK, RECIPES, Recipe, find_recipe, recipe_config
from megatron_srpo.launch.self_play_recipes import SELF_PLAY_RECIPES, SelfPlayRecipe, self_play_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo recipes``."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME | section.key=value",
        help="a recipe, such as qwen3-8b-srpo, and changes of single keys; without a name: the list",
    )
    parser.add_argument("--model", metavar="FOLDER", help="the model (default models/Qwen3-SIZE)")
    add_benchmark_arguments(parser)
    parser.add_argument("--coder", metavar="FOLDER", help="self-play: the model that rewrites questions")
    parser.add_argument("--embedder", metavar="FOLDER", help="self-play: the model that embeds the code")
    parser.add_argument("--num-nodes", type=positive_integer, default=1, metavar="N", help="default 1")
    add_gpus_per_node(parser)
    parser.add_argument(
        "--placement",
        choices=("colocated", "disaggregated"),
        default="colocated",
        help="SGLang servers on the GPUs that train (default), or on others",
    )
    parser.add_argument("--out", metavar="FILE", help="write the YAML there, not to the terminal")


def run(arguments: argparse.Namespace) -> int:
    """List, print or write; return the exit status."""
    overrides = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    if not names:
        if overrides or arguments.out:
            raise ConfigError("no recipe: give a name, such as qwen3-8b-srpo, before what is to be changed")
        print(list_text(arguments.num_nodes, arguments.gpus_per_node))
        return 0
    if len(names) > 1:
        raise ConfigError(f"several recipes: {', '.join(names)}; give one")
    write = _self_play_text if _means_self_play(names[0]) else _run_text
    text = write(names[0], arguments, overrides)
    if arguments.out is None:
        print(text, end="")
        return 0
    try:
        Path(arguments.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {arguments.out}: {error.strerror}") from error
    print(f"written: {arguments.out}")
    return 0


def _means_self_play(name: str) -> bool:
    """Say whether a name, perhaps mistyped, is nearest to a recipe of self-play."""
    near = difflib.get_close_matches(name, [*RECIPES, *SELF_PLAY_RECIPES], n=1)
    return bool(near) and near[0] in SELF_PLAY_RECIPES


def _run_text(name: str, arguments: argparse.Namespace, overrides: list[str]) -> str:
    for option in ("coder", "embedder"):
        if vars(arguments)[option]:
            raise ConfigError(f"--{option} is for recipes of self-play; {name} measures no skills")
    recipe = find_recipe(name)
    config = recipe_config(
        recipe.name,
        model=arguments.model,
        benchmark=arguments.benchmark or DEFAULT_BENCHMARK,
        data=arguments.data,
        num_nodes=arguments.num_nodes,
        gpus_per_node=arguments.gpus_per_node,
        placement=arguments.placement,
        overrides=overrides,
    )
    return yaml_text(recipe, config, arguments.num_nodes, arguments.gpus_per_node)


def _self_play_text(name: str, arguments: argparse.Namespace, overrides: list[str]) -> str:
    if arguments.benchmark:
        raise ConfigError(f"--benchmark: {name} writes its own questions; --data names its evaluation sets")
    if arguments.placement != "colocated":
        raise ConfigError(f"--placement {arguments.placement}: {name} takes turns on its GPUs; leave it out")
    config = self_play_config(
        name,
        model=arguments.model,
        coder=arguments.coder,
        embedder=arguments.embedder,
        data=arguments.data,
        num_nodes=arguments.num_nodes,
        gpus_per_node=arguments.gpus_per_node,
        overrides=overrides,
    )
    return self_play_yaml(SELF_PLAY_RECIPES[name], config, arguments.num_nodes, arguments.gpus_per_node)


def yaml_text(recipe: Recipe, config: RunConfig, num_nodes: int, gpus_per_node: int) -> str:
    """Return a recipe as YAML, headed by what it is and how it is started."""
    source, replica = PAPERS[recipe.algorithm].source, config.parallel.replica
    return _head("train", recipe.name, source, replica, num_nodes, gpus_per_node) + to_yaml(config)


def self_play_yaml(recipe: SelfPlayRecipe, config: SelfPlayConfig, num_nodes: int, gpus_per_node: int) -> str:
    """Return a recipe of self-play as YAML, headed by what it is and how it is started."""
    replica = config.solver.parallel.replica
    return _head("self-play", recipe.name, recipe.source, replica, num_nodes, gpus_per_node) + to_yaml(config)


def _head(command: str, name: str, source: str, replica: int, num_nodes: int, gpus_per_node: int) -> str:
    replicas = num_nodes * gpus_per_node // replica
    start = f"megatron-srpo {command} --config FILE --replicas {replicas}"
    if num_nodes > 1:
        start = (
            f"megatron-srpo launch --config FILE --launch CLUSTER launch.nodes={num_nodes} "
            f"launch.ranks_per_node={gpus_per_node}   (docs/slurm.md)"
        )
    return f"# {name} on {num_nodes} x {gpus_per_node} GPUs. {source}.\n#   {start}\n"


def list_text(num_nodes: int, gpus_per_node: int) -> str:
    """Return a table of all recipes, with their layouts on these GPUs."""
    rows = [("recipe", "rate", "GPUs from", f"on {num_nodes} x {gpus_per_node} GPUs")]
    for recipe in RECIPES.values():
        rate = f"{PAPERS[recipe.algorithm].learning_rate:g}"
        least = str(LAYOUTS[recipe.size][0].gpus)
        rows.append((recipe.name, rate, least, _layout_text(recipe, num_nodes, gpus_per_node)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    lines += ["", "self-play", *(f"{recipe.name}  {recipe.source}" for recipe in SELF_PLAY_RECIPES.values())]
    return "\n".join([*lines, "", "megatron-srpo recipes NAME writes one as YAML: docs/recipes.md"])


def _layout_text(recipe: Recipe, num_nodes: int, gpus_per_node: int) -> str:
    try:
        layout = choose_layout(recipe.size, num_nodes, gpus_per_node)
    except ConfigError:
        return "none"
    parts = [f"TP{layout.tensor}"]
    parts += [f"PP{layout.pipeline}"] if layout.pipeline > 1 else []
    parts += [f"DP{num_nodes * gpus_per_node // layout.replica}"]
    parts += ["optimizer and teacher in host memory"] if layout.offload else []
    parts += [f"recompute {layout.recompute}"] if layout.recompute != "none" else []
    return f"{' '.join(parts)}; servers TP{layout.server}"
