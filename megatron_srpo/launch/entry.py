"""What runs on every rank of a training job, whoever started it."""

import sys
from contextlib import suppress

from megatron_srpo.config.run import RunConfig


def train(config: RunConfig, resume: bool = True) -> None:
    """Train as this rank; torchrun or srun has started all of them. The target of nemo-run's recipes.

    A run that was stopped on request ends the process with status 75, so that whoever started it goes on.

    Args:
        resume: go on where ``output_dir`` holds a run of this very configuration, as after a requeue;
            otherwise such a folder is refused.

    Raises:
        UserError: the configuration, model, data or checkpoint cannot be used.
    """
    from megatron_srpo.session.preflight import check_output, is_started

    resume = resume and is_started(config)
    check_output(config, resume)
    status = train_rank(config, resume)
    if status:
        sys.exit(status)


def train_rank(config: RunConfig, resume: bool) -> int:
    """Train as this rank, after :func:`check_output`; return its exit status.

    Returns:
        0 when all steps are done, 75 when the run was stopped on request (docs/resume.md).
    """
    from megatron_srpo.session.stop import STOPPED_STATUS, StopRequested, StopSignals

    with StopSignals() as signals, suppress(StopRequested):
        # Imported here: they take torch and Megatron-Core along, for seconds in which a signal may come.
        from megatron_srpo.loop import train as train_run
        from megatron_srpo.session.build import open_run

        with open_run(config, resume, signals) as run:
            finished = train_run(run)
        sys.stdout.flush()
        if finished:
            return 0
    return STOPPED_STATUS
