"""Train a policy.

The config names everything: model folder, prompts, algorithm, layout. Ranks are started on this machine
(those of one copy of the model, times --replicas); under torchrun or srun the ranks that exist are used. The
run folder (output_dir) receives metrics.jsonl, rollouts.jsonl, checkpoints, report.html and the final model.

SIGUSR1, SIGTERM, or a file named stop in the run folder asks the run to stop: it finishes at most the step
that it is in, writes a checkpoint and exits with status 75; --resume goes on.
"""

import argparse

from megatron_srpo import platform
from megatron_srpo.commands.common import (
    add_config_arguments,
    add_options_argument,
    add_replicas_argument,
    add_resume_arguments,
    describe_options,
    launch_ranks,
    run_config,
)
from megatron_srpo.config.run import RunConfig
from megatron_srpo.launch.entry import train_rank
from megatron_srpo.session.preflight import check_output, check_run, is_started


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo train``."""
    add_config_arguments(parser)
    add_resume_arguments(parser, "go on from the newest checkpoint in output_dir")
    add_replicas_argument(parser)
    add_options_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked cheaply, then train; return the exit status."""
    if arguments.options:
        print(describe_options(arguments.options))
        return 0
    config = run_config(arguments)
    resume = arguments.resume or (arguments.resume_if_started and is_started(config))
    check_output(config, resume)
    if platform.rank_environment() is not None:
        return train_here(config, resume)
    ranks = config.parallel.fewest_ranks * arguments.replicas
    check_run(config, ranks)
    if ranks == 1:
        return train_here(config, resume)
    return launch_ranks(ranks, sys_arguments(arguments))


def sys_arguments(arguments: argparse.Namespace) -> list[str]:
    """Write the arguments for a rank: the same run, without what only the starter needs."""
    config = ["--config", arguments.config] if arguments.config else []
    resume = ["--resume"] if arguments.resume else []
    if arguments.resume_if_started:
        resume = ["--resume-if-started"]
    return ["train", *config, *resume, *arguments.overrides]


def train_here(config: RunConfig, resume: bool) -> int:
    """Train as this rank; return its exit status."""
    return train_rank(config, resume)
