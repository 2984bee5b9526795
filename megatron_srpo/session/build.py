"""Puts a run together on one rank: groups, models, engine, prompts, verifiers, and the checkpoint."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from megatron_srpo.errors import EngineError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import initialize_parallel, leave_parallel
from megatron_srpo.model.precision import choose_layers, token_alignment
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.session.control import Control, stop_file
from megatron_srpo.session.engine import link_engine
from megatron_srpo.session.evaluate import Evaluator
from megatron_srpo.session.kept_responses import KeptResponses
from megatron_srpo.session.lessons import TeacherPrompts
from megatron_srpo.session.models import build_trainer
from megatron_srpo.session.preflight import check_run
from megatron_srpo.session.recording import Recorder
from megatron_srpo.session.run import Parts, Run
from megatron_srpo.session.sampling import Sampling
from megatron_srpo.session.scorer import NOT_EMBEDDED, Embedding, Scorer, ScorerParts, Verifiers
from megatron_srpo.session.status import RunStatus
from megatron_srpo.session.stop import StopSignals
from megatron_srpo.training.checkpoint import finished_checkpoints, load_checkpoint, load_weights
from megatron_srpo.training.exchange import from_first_rank, largest_anywhere
from megatron_srpo.training.fence import Fence, claim
from megatron_srpo.weights.agreement import on_first_rank


@contextmanager
def open_run(
    config: RunConfig,
    resume: bool,
    signals: StopSignals | None = None,
    embedding: Embedding = NOT_EMBEDDED,
) -> Iterator[Run]:
    """Join the process group and build this rank's part of a run; close everything at the end.

    A default process group that exists already (in an embedding program) is used and left open. Whoever held
    the run folder before loses it.

    Args:
        resume: go on from the newest checkpoint, if there is one.
        signals: this rank's requests to stop; by default none is heeded.
        embedding: what the program around the run changes of it.

    Raises:
        UserError: the configuration, model, data or checkpoint cannot be used.
        StopRequested: while servers were waited for.
    """
    _quiet_libraries()
    with process_group(config.training.distributed_timeout_s):
        arch = check_run(config, dist.get_world_size())
        resume = from_first_rank(resume)
        fence = on_first_rank(lambda: _take_over(Path(config.output_dir)))
        found = on_first_rank(lambda: _newest_checkpoint(config)) if resume else None
        step = found[0] if found else 0
        control = Control(fence, signals or StopSignals(), embedding.stop_folders)
        with (
            RunStatus(fence, config.training.steps, dist.get_rank(), step) as status,
            _open_parts(config, arch, found, control, status, embedding) as run,
        ):
            yield run


@contextmanager
def process_group(timeout_s: float) -> Iterator[None]:
    """Join the default process group, unless this process has done so; leave it together at a regular end."""
    if dist.is_initialized():
        yield
        return
    platform.init_distributed(timeout_s)
    try:
        yield
        # torchrun ends the other ranks soon after the first one that exits with another status than 0, as
        # all do when they were stopped; rank 0 may still be closing its servers.
        largest_anywhere(0)
    finally:
        dist.destroy_process_group()


def _take_over(folder: Path) -> Fence:
    """Become the owner of the run folder, and forget what was meant for, or left by, earlier ones."""
    fence = claim(folder)
    stop_file(folder).unlink(missing_ok=True)
    for place in (folder, folder / "checkpoints"):
        fence.remove_leftovers(place)
    return fence


@contextmanager
def _open_parts(
    config: RunConfig,
    arch: Qwen3Architecture,
    checkpoint: tuple[int, Path] | None,
    control: Control,
    status: RunStatus,
    embedding: Embedding,
) -> Iterator[Run]:
    layout, chosen = config.parallel, config.model
    layers = choose_layers(chosen.layers, chosen.dtype, chosen.fp8, chosen.fp8_params, platform.accelerator())
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
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint[1], trainer)
    elif config.training.initial_checkpoint:
        load_weights(Path(config.training.initial_checkpoint), trainer)
    control.poll()  # loading takes long, and the recorder changes files
    recorder = Recorder(config, progress["step"], active=dist.get_rank() == 0)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    say = recorder.progress.message
    with RewardPool(config.reward) as rewards, recorder, ExitStack() as stack:
        try:
            link = stack.enter_context(
                link_engine(config, arch, groups, trainer, tokenizer, say, control.pending)
            )
        except EngineError:
            control.heed()  # which may be why nobody waited for servers any longer
            raise
        prompts = _prompts(config, tokenizer, recorder)
        sampling: Sampling = link.sampling
        if embedding.responses is not None:
            sampling = KeptResponses(sampling, embedding.responses, groups)
        scorer: Scorer = Verifiers(rewards, groups)
        if embedding.open_scorer is not None:
            offered = ScorerParts(groups, tokenizer, control, rewards, say)
            scorer = stack.enter_context(embedding.open_scorer(offered))
        elif groups.is_leader:
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
            sampling=sampling,
            evaluation_sampling=link.sampling,
            publisher=link.publisher,
            scorer=scorer,
            teacher_prompts=TeacherPrompts(tokenizer, config.data, tokenizer.all_special_tokens, config.seed),
            evaluator=Evaluator(config, prompts.eval, tokenizer, rewards, groups, control.fence.held),
            recorder=recorder,
            control=control,
            status=status,
        )
        yield Run(parts, progress["step"], progress["training_seconds"])
    leave_parallel()


def _quiet_libraries() -> None:
    """Silence what would be repeated on every rank and asks nothing of the user."""
    disable_progress_bar()
    warnings.filterwarnings("ignore", message="full scope is deprecated")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|megatron")
    # Megatron-Core asks this of the parts of weights that a distributed optimizer holds.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")


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


def _newest_checkpoint(config: RunConfig) -> tuple[int, Path] | None:
    """Return step and folder of the newest whole checkpoint; a run that has none begins anew."""
    found = finished_checkpoints(Path(config.output_dir) / "checkpoints")
    return found[-1] if found else None
