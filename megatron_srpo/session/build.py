"""Puts a run together on one rank: groups, models, engine, prompts, verifiers, and the checkpoint."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from megatron_srpo import platform
from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.chat import limit_prompts
from megatron_srpo.data.sampler import PromptSampler
from megatron_srpo.data.sources import PromptSets, load_prompts, mixture_weights
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups, initialize_parallel
from megatron_srpo.model.precision import choose_layers, token_alignment
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.session.engine import EngineLink, link_engine
from megatron_srpo.session.evaluate import Evaluator
from megatron_srpo.session.lessons import TeacherPrompts
from megatron_srpo.session.models import build_trainer
from megatron_srpo.session.preflight import check_run
from megatron_srpo.session.recording import Recorder
from megatron_srpo.session.run import Parts, Run
from megatron_srpo.training.checkpoint import finished_checkpoints, load_checkpoint
from megatron_srpo.training.trainer import Trainer


@contextmanager
def open_run(config: RunConfig, resume: bool) -> Iterator[Run]:
    """Join the process group and build this rank's part of a run; close everything at the end.

    A default process group that exists already (in an embedding program) is used and left open.

    Raises:
        UserError: the configuration, model, data or checkpoint cannot be used.
    """
    _quiet_libraries()
    joined = not dist.is_initialized()
    if joined:
        platform.init_distributed(config.training.distributed_timeout_s)
    try:
        arch = check_run(config, dist.get_world_size())
        layout, chosen = config.parallel, config.model
        layers = choose_layers(
            chosen.layers, chosen.dtype, chosen.fp8, chosen.fp8_params, platform.accelerator()
        )
        groups = initialize_parallel(
            layout.tensor,
            PipelineStages.of(layout),
            config.seed,
            cp=layout.context,
            expert=layout.expert,
            sequence=layout.sequence,
            alignment=token_alignment(layers.fp8),
        )
        trainer = build_trainer(config, arch, groups, layers)
        progress: dict[str, Any] = {"step": 0, "training_seconds": 0.0}
        if resume:
            progress = _restore(config, trainer)
        recorder = Recorder(config, progress["step"], active=dist.get_rank() == 0)
        tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        with (
            RewardPool(config.reward) as rewards,
            recorder,
            link_engine(config, arch, groups, trainer, tokenizer, recorder.progress.message) as link,
        ):
            yield _assemble(config, arch, groups, trainer, tokenizer, link, rewards, recorder, progress)
    finally:
        if joined:
            dist.destroy_process_group()


def _quiet_libraries() -> None:
    """Silence what would be repeated on every rank and asks nothing of the user."""
    disable_progress_bar()
    warnings.filterwarnings("ignore", message="full scope is deprecated")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|megatron")
    # Megatron-Core asks this of the parts of weights that a distributed optimizer holds.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")


def _assemble(
    config: RunConfig,
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    trainer: Trainer,
    tokenizer: Any,
    link: EngineLink,
    rewards: RewardPool,
    recorder: Recorder,
    progress: dict[str, Any],
) -> Run:
    prompts = _prompts(config, tokenizer, recorder)
    if groups.is_leader:
        rewards.start()
    parts = Parts(
        config=config,
        arch=arch,
        groups=groups,
        tokenizer=tokenizer,
        sampler=PromptSampler(
            prompts.train, config.data.seed, config.data.shuffle, mixture_weights(config.data)
        ),
        trainer=trainer,
        sampling=link.sampling,
        publisher=link.publisher,
        rewards=rewards,
        teacher_prompts=TeacherPrompts(tokenizer, config.data, tokenizer.all_special_tokens, config.seed),
        evaluator=Evaluator(config, prompts.eval, tokenizer, rewards, groups),
        recorder=recorder,
    )
    return Run(parts, progress["step"], progress["training_seconds"])


def _prompts(config: RunConfig, tokenizer: Any, recorder: Recorder) -> PromptSets:
    """Load the prompt sets and keep those within the length limit; say what was left out."""
    sets = load_prompts(config.data)
    for report in sets.reports:
        if report.bad:
            recorder.progress.warn(report.summary())
    limit = (config.data.thinking, config.data.max_prompt_tokens, config.data.overlong_prompts)
    train, lengths = limit_prompts(sets.train, tokenizer, *limit)
    if lengths.skipped or lengths.truncated:
        recorder.progress.warn(
            f"{lengths.skipped} training prompts longer than data.max_prompt_tokens were left out, "
            f"{lengths.truncated} were cut"
        )
    evaluation = {name: limit_prompts(chosen, tokenizer, *limit)[0] for name, chosen in sets.eval.items()}
    return PromptSets(train, evaluation, sets.reports)


def _restore(config: RunConfig, trainer: Trainer) -> dict[str, Any]:
    """Load the newest whole checkpoint; a run that has none yet starts at the beginning."""
    found = finished_checkpoints(Path(config.output_dir) / "checkpoints")
    if not found:
        return {"step": 0, "training_seconds": 0.0}
    return load_checkpoint(found[-1][1], trainer)
