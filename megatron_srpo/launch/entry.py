"""What runs on every rank of a training job, whoever started it."""

import sys
from pathlib import Path

from megatron_srpo.config.run import RunConfig


def train(config: RunConfig, resume: bool = True) -> None:
    """Train as this rank; torchrun or srun has started all of them. The target of nemo-run's recipes.

    Args:
        resume: go on where ``output_dir`` holds a run of this very configuration, as after a requeue;
            otherwise such a folder is refused.

    Raises:
        UserError: the configuration, model, data or checkpoint cannot be used.
    """
    from megatron_srpo.session.preflight import check_output

    resume = resume and (Path(config.output_dir) / "config.yaml").exists()
    check_output(config, resume)
    train_rank(config, resume)


def train_rank(config: RunConfig, resume: bool) -> None:
    """Train as this rank, after :func:`check_output`."""
    # Imported here: they take torch and Megatron-Core along.
    from megatron_srpo.loop import train as train_run
    from megatron_srpo.session.build import open_run

    with open_run(config, resume) as run:
        train_run(run)
    sys.stdout.flush()
