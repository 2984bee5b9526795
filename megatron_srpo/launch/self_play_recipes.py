"""Recipes for self-play: R-Diverse and R-Zero on Qwen3 4B and 8B Base, with the papers' settings.

From R-Diverse (arXiv 2602.13103) and R-Zero (arXiv 2508.05004). What the papers leave open is taken from
R-Zero's released configuration, or marked "choice"; docs/recipes.md lists both. Needs neither
nemo-run nor torch.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from megatron_srpo.config.algorithm import AlgorithmConfig, PolicyLossConfig
from megatron_srpo.config.benchmarks import benchmark_source
from megatron_srpo.config.data import DataConfig
from megatron_srpo.config.evaluation import EvaluationConfig
from megatron_srpo.config.loader import with_overrides
from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import (
    ChallengerRewardConfig,
    CoderConfig,
    EmbedderConfig,
    PoolConfig,
    SelfPlayConfig,
    SkillConfig,
    VotesConfig,
)
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.layouts import SizeLayout, choose_layout
from megatron_srpo.launch.recipes import check_ranks, servers

#: Of an optimizer step: the papers' global batch.
PROMPTS_PER_OPTIMIZER_STEP = 128
#: Of one batch of rollouts: R-Zero's released configuration.
PROMPTS_PER_STEP = 512
#: R-Zero's released configuration.
PROMPT_TOKENS, RESPONSE_TOKENS = 2048, 4096
#: Choice: three of the longest sequences.
MICRO_BATCH_TOKENS = 3 * (PROMPT_TOKENS + RESPONSE_TOKENS)
#: The papers' mathematics.
EVALUATION_SETS = ("amc23", "minerva", "math500", "gsm8k", "olympiadbench", "aime24", "aime25")
DEFAULT_CODER = "models/Qwen2.5-Coder-7B-Instruct"
DEFAULT_EMBEDDER = "models/jina-code-embeddings-1.5b"
#: Choice: GPUs that share the coder, whose four key-value heads they divide, and its share of their memory.
CODER_GPUS, CODER_MEM_FRACTION = 4, 0.2


@dataclass(frozen=True)
class SelfPlayRecipe:
    """One method on one size.

    Attributes:
        method: ``r-diverse`` or ``r-zero``.
        source: where it was published.
    """

    size: str
    method: str
    source: str

    @property
    def name(self) -> str:
        """Such as ``qwen3-4b-base-r-diverse``."""
        return f"qwen3-{self.size}-base-{self.method}"

    @property
    def default_model(self) -> str:
        """Where both roles' first weights are looked for: the name that they were published under."""
        return f"models/Qwen3-{self.size.upper()}-Base"


SELF_PLAY_RECIPES = {
    recipe.name: recipe
    for size in ("4b", "8b")
    for recipe in (
        SelfPlayRecipe(size, "r-diverse", "arXiv 2602.13103"),
        SelfPlayRecipe(size, "r-zero", "arXiv 2508.05004"),
    )
}


def find_self_play_recipe(name: str) -> SelfPlayRecipe:
    """Return a recipe by its name.

    Raises:
        ConfigError: an unknown one; suggests the nearest.
    """
    if name in SELF_PLAY_RECIPES:
        return SELF_PLAY_RECIPES[name]
    near = difflib.get_close_matches(name, SELF_PLAY_RECIPES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no self-play recipe {name!r}; {hint}there are: {', '.join(SELF_PLAY_RECIPES)}")


def self_play_config(
    name: str,
    *,
    model: str | None = None,
    coder: str | None = None,
    embedder: str | None = None,
    data: str | None = None,
    output_dir: str | None = None,
    num_nodes: int = 1,
    gpus_per_node: int = 8,
    overrides: Sequence[str] = (),
) -> SelfPlayConfig:
    """Return the configuration of a self-play: the paper's settings in the layout for these GPUs.

    Args:
        name: a recipe's name, such as ``qwen3-4b-base-r-diverse``.
        model: folder of the base model in Hugging Face format, the first weights of both roles.
        coder, embedder: folders of the models that measure skills. R-Zero needs none; given a coder, it is
            measured all the same, which changes its report and not its training.
        data: folder of the evaluation sets as ``tools/prepare_data.py`` writes them; default ``data``.
        output_dir: the self-play's folder; default ``runs/RECIPE``.
        num_nodes, gpus_per_node: GPUs that train; SGLang servers share them.
        overrides: changes of single keys, ``section.key=value``, made last.

    Raises:
        ConfigError: an unknown recipe, GPUs that no layout fits, a key or value that cannot be used.
    """
    recipe = find_self_play_recipe(name)
    layout = choose_layout(recipe.size, num_nodes, gpus_per_node)
    diverse = recipe.method == "r-diverse"
    base = model or recipe.default_model
    coder = coder or (DEFAULT_CODER if diverse else None)
    config = SelfPlayConfig(
        output_dir=output_dir or f"runs/{recipe.name}",
        iterations=5 if diverse else 3,
        challenger=_run(base, layout, gpus_per_node, samples=4, steps=5, data=_data(None)),
        solver=_run(base, layout, gpus_per_node, samples=5, steps=15, data=_data(data or "data")),
        pool=PoolConfig(questions=8000),
        votes=VotesConfig(samples=10, temperature=1.0, top_p=0.99, low=0.3, high=0.8),
        reward=_r_diverse_reward() if diverse else _r_zero_reward(),
        skill=_skill(coder, embedder or DEFAULT_EMBEDDER, gpus_per_node),
        replay=0.3 if diverse else 0.0,
    )
    config = with_overrides(config, overrides)
    for run in (config.challenger, config.solver):
        check_ranks(run, num_nodes * gpus_per_node)
    return config


def _r_diverse_reward() -> ChallengerRewardConfig:
    return ChallengerRewardConfig(
        uncertainty="min",
        repetition="skill",
        cluster_distance=0.5,
        memory=True,
        max_weight=0.5,
        max_threshold=0.5,
        mean_weight=0.5,
        mean_threshold=0.25,
        floor_at_zero=False,
        # Choice: the papers only say that it lies below every well-formed question's.
        malformed=-2.0,
    )


def _r_zero_reward() -> ChallengerRewardConfig:
    return ChallengerRewardConfig(
        # R-Zero's released code; its paper prints 1 - 2 |s - 1/2|.
        uncertainty="min",
        repetition="bleu",
        cluster_distance=0.5,
        memory=False,
        floor_at_zero=True,
        malformed=-1.0,
    )


def _run(
    model: str, layout: SizeLayout, gpus_per_node: int, *, samples: int, steps: int, data: DataConfig
) -> RunConfig:
    return RunConfig(
        model=ModelConfig(path=model, dtype="bfloat16"),
        parallel=ParallelConfig(tensor=layout.tensor, pipeline=layout.pipeline),
        data=data,
        rollout=RolloutConfig(
            engine="sglang",
            prompts_per_step=PROMPTS_PER_STEP,
            samples_per_prompt=samples,
            temperature=1.0,
            top_p=0.99,
            max_response_tokens=RESPONSE_TOKENS,
            placement="colocated",
            sglang=servers(layout, gpus_per_node, colocated=True),
        ),
        algorithm=AlgorithmConfig(
            name="grpo",
            policy=PolicyLossConfig(clip_low=0.2, clip_high=0.3, normalize_by_std=True, kl_coefficient=1e-2),
            # Choices: as in the other recipes.
            engine_importance_cap=2.0,
            aggregation="token_mean",
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-6,
            schedule="constant",
            warmup_steps=0,  # R-Zero's released configuration
            weight_decay=0.01,
            grad_clip=1.0,
            offload=layout.offload,
        ),
        training=TrainingConfig(
            steps=steps,
            prompts_per_mini_batch=PROMPTS_PER_OPTIMIZER_STEP,
            micro_batch_tokens=MICRO_BATCH_TOKENS,
            recompute=layout.recompute,
        ),
        checkpoint=CheckpointConfig(every=5, keep=1),
        # Choice: the papers have other numbers of samples for other sets.
        evaluation=EvaluationConfig(every=0, samples_per_prompt=4, temperature=0.6, top_p=0.95),
    )


def _data(folder: str | None) -> DataConfig:
    """Return the prompts' limits, and evaluation sets where there is a folder of them.

    ``thinking`` makes Qwen3's chat template end as R-Zero renders it, without an empty think block.
    """
    names = EVALUATION_SETS if folder else ()
    sources = tuple(benchmark_source(name, str(PurePath(folder or "") / name)) for name in names)
    return DataConfig(eval=sources, thinking=True, max_prompt_tokens=PROMPT_TOKENS)


def _skill(coder: str | None, embedder: str, gpus_per_node: int) -> SkillConfig:
    if coder is None:
        return SkillConfig(coder=CoderConfig(kind="off"))
    server = SGLangConfig(tensor_parallel=min(CODER_GPUS, gpus_per_node), mem_fraction=CODER_MEM_FRACTION)
    return SkillConfig(
        coder=CoderConfig(kind="model", path=coder, engine="sglang", sglang=server),
        embedder=EmbedderConfig(kind="sentence_transformers", model=embedder, device="cuda"),
    )
