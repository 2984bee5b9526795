"""Run all checks and show them, as a table or as JSON."""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_srpo import platform
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.doctor.communication import check_communication
from megatron_srpo.doctor.machine import check_accelerator, check_disk, check_memory, check_threads
from megatron_srpo.doctor.model_folder import check_model_folder
from megatron_srpo.doctor.packages import check_optional_packages, check_python, check_requirements
from megatron_srpo.doctor.types import Check
from megatron_srpo.errors import ConfigError

_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo doctor``."""
    parser.add_argument("--config", metavar="YAML", help="also check the model folder that this config names")
    parser.add_argument(
        "--model", metavar="FOLDER", help="also check this model folder (Hugging Face format)"
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Carry out ``megatron-srpo doctor``; return the exit status: 1 when a check failed, else 0."""
    checks = run_checks(args.config, args.model)
    if args.json:
        print(to_json(checks))
        return exit_code(checks)
    return print_report(checks)


def run_checks(config_path: str | None = None, model_folder: str | None = None) -> list[Check]:
    """Check the machine and the packages, then the config and the model folder if they are named.

    Args:
        config_path: YAML of a run: checked, and read for the model folder, the ranks and the output folder.
        model_folder: Hugging Face folder to check instead of the config's.
    """
    ranks, output = 1, "."
    checks: list[Check] = []
    if config_path is not None:
        config, check = check_config(config_path)
        checks.append(check)
        if config is not None:
            ranks = config.parallel.tensor * config.parallel.pipeline
            output, model_folder = config.output_dir, model_folder or config.model.path
    if model_folder is not None:
        checks += check_model_folder(model_folder)
    return [*check_packages(), *check_machine(ranks, output), *checks]


def check_packages() -> list[Check]:
    """Python, the required packages and the optional ones."""
    return [check_python(), *check_requirements(), *check_optional_packages(platform.has_cuda())]


def check_machine(ranks: int, output: str) -> list[Check]:
    """Device, communication between processes, threads, memory and disk."""
    return [
        check_accelerator(),
        check_communication(),
        check_threads(ranks),
        check_memory(),
        check_disk(output),
    ]


def check_config(path: str) -> tuple[RunConfig | None, Check]:
    """Build the configuration of a run from its file; ``None`` when it is refused."""
    try:
        return load_config(RunConfig, path), Check("config", "ok", path)
    except ConfigError as error:
        return None, Check("config", "fail", str(error), "correct the config file and run again")


def exit_code(checks: Sequence[Check]) -> int:
    """Return 1 when a check failed, else 0; warnings do not count."""
    return int(any(check.status == "fail" for check in checks))


def to_json(checks: Sequence[Check]) -> str:
    """Write the checks as ``{"ok": bool, "checks": [{name, status, detail, remedy}]}``."""
    rows = [dataclasses.asdict(check) for check in checks]
    return json.dumps({"ok": exit_code(checks) == 0, "checks": rows}, indent=2)


def print_report(checks: Sequence[Check], console: Console | None = None) -> int:
    """Print a table with a remedy under every finding and a closing count; return :func:`exit_code`."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row(_MARKS[check.status], escape(check.name), escape(check.detail))
        if check.remedy:
            table.add_row("", "", f"[cyan]-> {escape(check.remedy)}[/]")
    console.print(table)
    failed, warned = (sum(check.status == status for check in checks) for status in ("fail", "warn"))
    console.print(f"{len(checks)} checks: {failed} failed, {warned} warnings")
    return exit_code(checks)
