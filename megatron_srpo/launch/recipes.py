"""Recipes: SRPO, its parents and its ablations on Qwen3 0.6B to 32B, as plain functions that return a
:class:`RunConfig`.

What nemo-run calls a recipe, a configured call of the training function, is made of these in
``nemo_recipes.py``. Needs neither nemo-run nor torch.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_srpo.config.loader import with_overrides
from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.config.training import TrainingConfig, mini_batch_prompts
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch import papers
from megatron_srpo.launch.layouts import COLOCATED_MEM_FRACTION, LAYOUTS, SizeLayout, choose_layout
from megatron_srpo.launch.papers import PAPERS

#: What a recipe trains on unless told otherwise.
DEFAULT_BENCHMARK = "chemistry"


@dataclass(frozen=True)
class Recipe:
    """One algorithm, or one of its ablations, on one size."""

    size: str
    algorithm: str

    @property
    def name(self) -> str:
        """Such as ``qwen3-8b-srpo``."""
        return f"qwen3-{self.size}-{self.algorithm}"

    @property
    def function(self) -> str:
        """Name of the function in ``nemo_recipes.py``: ``qwen3_8b_srpo``."""
        return self.name.replace("-", "_").replace(".", "_")

    @property
    def default_model(self) -> str:
        """Where the model is looked for unless told otherwise: the name that it was published under."""
        return f"models/Qwen3-{self.size.upper()}"


RECIPES = {recipe.name: recipe for size in LAYOUTS for recipe in (Recipe(size, name) for name in PAPERS)}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or by the name of its function.

    Raises:
        ConfigError: an unknown one; suggests the nearest.
    """
    for recipe in RECIPES.values():
        if name in (recipe.name, recipe.function):
            return recipe
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no recipe {name!r}; {hint}there are: {', '.join(RECIPES)}")


def recipe_config(
    name: str,
    *,
    model: str | None = None,
    benchmark: str = DEFAULT_BENCHMARK,
    data: str | None = None,
    output_dir: str | None = None,
    num_nodes: int = 1,
    gpus_per_node: int = 8,
    placement: str = "colocated",
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Return the configuration of a run: the paper's settings in the layout for these GPUs.

    Args:
        name: a recipe's name, such as ``qwen3-8b-srpo``.
        model: folder of the model in Hugging Face format.
        benchmark: what it trains and is tested on, one of the papers' five, or gsm8k.
        data: folder of that benchmark as ``tools/prepare_data.py`` writes it; default ``data/BENCHMARK``.
        output_dir: the run's folder; default ``runs/RECIPE-BENCHMARK``.
        num_nodes, gpus_per_node: GPUs that train.
        placement: ``colocated``: SGLang servers on the same GPUs; ``disaggregated``: on others.
        overrides: changes of single keys, ``section.key=value``, made last.

    Raises:
        ConfigError: an unknown recipe or benchmark, GPUs that no layout fits, a key or value that cannot be
            used.
    """
    recipe = find_recipe(name)
    for key, value in (("num_nodes", num_nodes), ("gpus_per_node", gpus_per_node)):
        if value < 1:
            raise ConfigError(f"{key} = {value} of recipe {recipe.name}; give a number from 1")
    layout = choose_layout(recipe.size, num_nodes, gpus_per_node)
    paper = PAPERS[recipe.algorithm]
    config = RunConfig(
        output_dir=output_dir or f"runs/{recipe.name}-{benchmark}",
        model=ModelConfig(path=model or recipe.default_model, dtype="bfloat16"),
        parallel=ParallelConfig(tensor=layout.tensor, pipeline=layout.pipeline),
        data=papers.data_config(benchmark, data or f"data/{benchmark}"),
        rollout=_rollout(layout, gpus_per_node, placement),
        algorithm=papers.algorithm_config(paper),
        teacher=papers.teacher_config(layout.offload),
        optimizer=papers.optimizer_config(paper, layout.offload),
        training=_training(paper, layout),
        evaluation=papers.evaluation_config(),
    )
    config = with_overrides(config, overrides)
    check_ranks(config, num_nodes * gpus_per_node)
    return config


def _rollout(layout: SizeLayout, gpus_per_node: int, placement: str) -> RolloutConfig:
    return RolloutConfig(
        engine="sglang",
        prompts_per_step=papers.PROMPTS_PER_STEP,
        samples_per_prompt=papers.SAMPLES_PER_PROMPT,
        temperature=papers.ROLLOUT_TEMPERATURE,
        top_p=1.0,
        max_response_tokens=papers.RESPONSE_TOKENS,
        placement=placement,
        sglang=servers(layout, gpus_per_node, placement == "colocated"),
    )


def servers(layout: SizeLayout, gpus_per_node: int, colocated: bool) -> SGLangConfig:
    """Return the SGLang servers of one machine; ``colocated`` ones share the trainer's GPUs."""
    return SGLangConfig(
        servers=gpus_per_node // layout.server,
        tensor_parallel=layout.server,
        mem_fraction=COLOCATED_MEM_FRACTION if colocated else None,
    )


def _training(paper: papers.Paper, layout: SizeLayout) -> TrainingConfig:
    return TrainingConfig(
        steps=papers.STEPS,
        budget_hours=papers.BUDGET_HOURS,
        prompts_per_mini_batch=paper.prompts_per_mini_batch,
        # The longest sequence of any pass: the teacher's prompt and a response.
        micro_batch_tokens=papers.TEACHER_PROMPT_TOKENS + papers.RESPONSE_TOKENS,
        recompute=layout.recompute,
    )


def check_ranks(config: RunConfig, gpus: int) -> None:
    """Refuse here what ranks would refuse when they have started.

    Raises:
        ConfigError: so many GPUs cannot share the layout or the batch.
    """
    if gpus % config.parallel.replica:
        raise ConfigError(
            f"{gpus} GPUs cannot be shared by replicas of {config.parallel.replica}; change num_nodes, "
            "gpus_per_node or the overrides of parallel"
        )
    mini_batch_prompts(
        config.training, config.rollout.prompts_per_step, data_parallel=gpus // config.parallel.replica
    )
