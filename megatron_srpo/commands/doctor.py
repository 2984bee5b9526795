"""Check what a run needs: packages, machine, communication between ranks, config and model folder.

Each finding that is not in order comes with its remedy. Exit status 1 when a check failed.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo doctor``."""
    from megatron_srpo.doctor import command

    command.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the checks; return the exit status."""
    from megatron_srpo.doctor import command

    return command.run(arguments)
