"""Train a Challenger that writes questions and a Solver that learns from them, in turn (R-Zero, R-Diverse).

The config names everything (docs/self_play.md): both training runs, the pool of questions, the votes, the
Challenger's reward, how skills are measured. Ranks are started on this machine, as for `megatron-srpo train`;
under torchrun or srun the ranks that exist are used. output_dir receives a folder per iteration, the memory
bank, iterations.jsonl and report.html.

SIGUSR1, SIGTERM, or a file named stop in output_dir asks the self-play to stop: it exits with status 75, and
--resume goes on. After a kill at any moment --resume goes on as well; no question, vote or vector that was
saved is computed again.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from megatron_srpo import platform
from megatron_srpo.commands.common import (
    add_config_arguments,
    add_options_argument,
    add_replicas_argument,
    add_resume_arguments,
    describe_options,
    launch_ranks,
)
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.selfplay.folders import CHALLENGER, SOLVER, IterationFolder
from megatron_srpo.selfplay.questions import prompt_source
from megatron_srpo.session.preflight import check_output, check_run, is_started
from megatron_srpo.session.stop import STOPPED_STATUS, StopSignals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo self-play``."""
    add_config_arguments(parser)
    add_resume_arguments(parser, "go on with the self-play in output_dir")
    add_replicas_argument(parser)
    add_options_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked cheaply, then play; return the exit status."""
    if arguments.options:
        print(describe_options(arguments.options, SelfPlayConfig))
        return 0
    config = load_config(SelfPlayConfig, arguments.config, arguments.overrides)
    resume = arguments.resume or (arguments.resume_if_started and is_started(config))
    check_output(config, resume)
    if platform.rank_environment() is not None:
        return _play_here(config)
    ranks = _ranks(config, arguments.replicas)
    check_runs(config, ranks)
    if ranks == 1:
        return _play_here(config)
    given = ["--config", arguments.config] if arguments.config else []
    return launch_ranks(ranks, ["self-play", *given, "--resume-if-started", *arguments.overrides])


def check_runs(config: SelfPlayConfig, ranks: int) -> None:
    """Refuse impossible arithmetic in the two runs. Does not load Megatron-Core, which takes seconds.

    Raises:
        ConfigError, ModelError: as :func:`~megatron_srpo.session.preflight.check_run`.
    """
    first = IterationFolder(Path(config.output_dir), 1)
    for role, run in ((CHALLENGER, config.challenger), (SOLVER, config.solver)):
        source = prompt_source(config.prompt, role, first)
        check_run(dataclasses.replace(run, data=dataclasses.replace(run.data, train=(source,))), ranks)


def _ranks(config: SelfPlayConfig, replicas: int) -> int:
    challenger, solver = config.challenger.parallel.fewest_ranks, config.solver.parallel.fewest_ranks
    if challenger != solver:
        raise ConfigError(
            f"challenger.parallel needs {challenger} ranks per copy and solver.parallel {solver}: both "
            "train on the same ranks; start a common multiple by torchrun, or make the layouts equal"
        )
    return solver * replicas


def _play_here(config: SelfPlayConfig) -> int:
    # Imported here: they take torch and Megatron-Core along, for seconds in which a signal may come.
    with StopSignals() as signals:
        from megatron_srpo.selfplay.iterations import play

        finished = play(config, signals)
        sys.stdout.flush()
    return 0 if finished else STOPPED_STATUS
