"""Write the report page of a run (report.html in its folder) from its metrics and sampled rollouts.

Works on runs that are still going, were stopped, or were copied from elsewhere.
"""

import argparse

from megatron_srpo.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo report``."""
    parser.add_argument("run_dir", help="folder of the run (its output_dir)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from pathlib import Path

    from megatron_srpo.report.html import write_report

    if not (Path(arguments.run_dir) / "metrics.jsonl").is_file():
        raise DataError(f"{arguments.run_dir} holds no metrics.jsonl; name the output_dir of a run")
    print(write_report(arguments.run_dir))
    return 0
