"""What can be refused before anything is loaded: arithmetic, folders, a run that would be overwritten.

Needs neither torch nor a process group, so that the command line checks it before it starts any rank.
"""

from pathlib import Path

from megatron_srpo.config.loader import read_yaml, to_tree
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.config.training import mini_batch_prompts
from megatron_srpo.errors import CheckpointError, ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture, check_expert_tokens, check_layout
from megatron_srpo.model.precision import check_fp8_sizes
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.rewards.registry import check_name

# Sections and keys that may differ between a run and its continuation: they change what is shown, where
# memory is taken, where servers are and how long they are waited for, or how long the run goes on, not the
# trajectory up to there.
RESUMABLE = (
    "output_dir",
    "training.steps",
    "training.budget_hours",
    "training.distributed_timeout_s",
    "optimizer.offload",
    "teacher.offload",
    "reward.remote",
    "rollout.sglang.host",
    "rollout.sglang.urls",
    "rollout.sglang.registry",
    "rollout.sglang.api_key_file",
    "rollout.sglang.start_timeout_s",
    "rollout.sglang.return_timeout_s",
    "rollout.sglang.hang_timeout_s",
    "rollout.sglang.request_timeout_s",
    "rollout.sglang.max_restarts",
    "rollout.sglang.log_tail_lines",
    "checkpoint",
    "report",
)
# The length of a self-play is its iterations; how long each trains decides the trajectory.
_RESUMABLE_SELF_PLAY = (
    "output_dir",
    "iterations",
    *(f"{role}.{key}" for role in ("challenger", "solver") for key in RESUMABLE if key != "training.steps"),
)


def check_run(config: RunConfig, world_size: int) -> Qwen3Architecture:
    """Refuse impossible arithmetic; return the model's architecture.

    Raises:
        ConfigError: ranks, batches, heads, layers or lengths do not fit together, or there is no such
            verifier.
        ModelError: the model folder is not a Qwen3.
    """
    arch = Qwen3Architecture.from_hf_folder(config.model.path)
    parallel = config.parallel
    replica = parallel.replica
    check_layout(arch, parallel.tensor, PipelineStages.of(parallel), parallel.expert)
    check_expert_tokens(arch, parallel)
    if config.model.fp8 != "off":
        check_fp8_sizes(arch, config.model.fp8, parallel.tensor)
    balance = config.training.expert_balance
    if arch.experts is None and balance:
        raise ConfigError(f"training.expert_balance = {balance:g}, but the model has no experts; use 0")
    if balance and parallel.tensor * parallel.context > 1:
        raise ConfigError(
            f"training.expert_balance = {balance:g} with parallel.tensor x context = "
            f"{parallel.tensor * parallel.context}: its weight is known for whole sequences on one rank "
            "only; use 1, or training.expert_balance=0"
        )
    fewest = parallel.fewest_ranks
    if world_size % fewest:
        wide = "expert x pipeline" if fewest > replica else "tensor x pipeline x context"
        raise ConfigError(
            f"{world_size} ranks cannot be shared by replicas of parallel.{wide} = {fewest} ranks; start a "
            f"multiple of {fewest}"
        )
    if not config.data.train:
        raise ConfigError("data.train is empty; name at least one source of training prompts")
    for source in (*config.data.train, *config.data.eval):
        check_name(source.verifier)
    mini_batch_prompts(config.training, config.rollout.prompts_per_step, world_size // replica)
    _check_lengths(config, arch)
    return arch


def _check_lengths(config: RunConfig, arch: Qwen3Architecture) -> None:
    prompt, response = "data.max_prompt_tokens", "rollout.max_response_tokens"
    lengths = {f"{prompt} + {response}": config.data.max_prompt_tokens + config.rollout.max_response_tokens}
    if config.algorithm.name != "grpo":
        teacher = config.data.teacher.max_prompt_tokens + config.rollout.max_response_tokens
        lengths[f"data.teacher.max_prompt_tokens + {response}"] = teacher
    if config.data.eval and config.evaluation.max_response_tokens:
        evaluation = config.data.max_prompt_tokens + config.evaluation.max_response_tokens
        lengths[f"{prompt} + evaluation.max_response_tokens"] = evaluation
    for keys, longest in lengths.items():
        if longest > arch.max_position_embeddings:
            raise ConfigError(
                f"{keys} = {longest} exceeds the model's max_position_embeddings = "
                f"{arch.max_position_embeddings}; lower one of them"
            )


def is_started(config: RunConfig | SelfPlayConfig) -> bool:
    """Say whether ``output_dir`` holds a run."""
    return (Path(config.output_dir) / "config.yaml").exists()


def check_output(config: RunConfig | SelfPlayConfig, resume: bool) -> None:
    """Refuse to overwrite a run, and to continue one under another configuration.

    Raises:
        CheckpointError: the folder holds a run and ``resume`` is off, or it has no run to resume.
        ConfigError: a key that decides the trajectory differs from the run's own.
    """
    stored = Path(config.output_dir) / "config.yaml"
    if not resume:
        if is_started(config):
            raise CheckpointError(
                f"{config.output_dir} already holds a run; continue it with --resume, or choose another "
                "output_dir"
            )
        return
    if not stored.exists():
        raise CheckpointError(f"{config.output_dir} holds no run to resume; start it without --resume")
    resumable = RESUMABLE if isinstance(config, RunConfig) else _RESUMABLE_SELF_PLAY
    for key, ours, theirs in differences(to_tree(config), read_yaml(stored)):
        if not key.startswith(resumable):
            raise ConfigError(
                f"{key} = {ours!r}, but the run in {config.output_dir} has {theirs!r}; a resumed run keeps "
                "its configuration (only its length, output, checkpoints, reports, the place of "
                "servers and what lies in host memory may change)"
            )


def differences(ours: object, theirs: object, path: str = "") -> list[tuple[str, object, object]]:
    """List the dotted keys whose values differ between two plain trees, with both values."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        pairs = ((f"{path}.{key}" if path else str(key), ours.get(key), theirs.get(key)) for key in keys)
        return [found for key, one, other in pairs for found in differences(one, other, key)]
    return [] if ours == theirs else [(path, ours, theirs)]
