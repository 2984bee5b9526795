"""The command line of the doctor. Imports the checks, and with them torch, only when they are to run."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo doctor``."""
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="also check this run: model folder, layout, what Megatron-Core would build, what is used",
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="also check this model folder (Hugging Face format)"
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Carry out ``megatron-srpo doctor``; return the exit status: 1 when a check failed, else 0."""
    from megatron_srpo.doctor.checks import run_checks
    from megatron_srpo.doctor.report import exit_code, print_report, to_json

    checks = run_checks(args.config, args.model)
    if args.json:
        print(to_json(checks))
        return exit_code(checks)
    return print_report(checks)
