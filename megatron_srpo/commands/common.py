"""What several commands share: config arguments, the help on config keys, starting ranks on this machine."""

import argparse
import dataclasses
import signal
import sys
import typing
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil

from megatron_srpo import platform
from megatron_srpo.config.base import Config, field_types, type_name
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.session.stop import STOP_SIGNALS


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config FILE`` and the ``section.key=value`` overrides."""
    parser.add_argument("--config", metavar="YAML", help="configuration file of the run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change single keys, e.g. optimizer.learning_rate=1e-5 or data.train.0.size=500",
    )


def add_replicas_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--replicas N``."""
    parser.add_argument(
        "--replicas",
        type=positive_integer,
        default=1,
        metavar="N",
        help="copies of the model to start on this machine, data-parallel (default 1)",
    )


def add_resume_arguments(parser: argparse.ArgumentParser, resume: str) -> None:
    """Declare ``--resume``, explained by ``resume``, and ``--resume-if-started``."""
    resuming = parser.add_mutually_exclusive_group()
    resuming.add_argument("--resume", action="store_true", help=resume)
    resuming.add_argument(
        "--resume-if-started",
        action="store_true",
        help="go on if output_dir holds this run, begin it otherwise (for jobs that are started again)",
    )


def add_options_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--options SECTION``."""
    parser.add_argument(
        "--options",
        metavar="SECTION",
        help="list the config keys of a section (or 'all') with defaults and meaning, and exit",
    )


def positive_integer(text: str) -> int:
    """Read an argument that counts something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; give a whole number from 1")
    return int(text)


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """Read the configuration that the arguments describe.

    Raises:
        ConfigError: a file, key or value that cannot be used.
    """
    return load_config(RunConfig, arguments.config, arguments.overrides)


def describe_options(section: str, cls: Any = RunConfig, above: str = "") -> str:
    """List config keys below ``section`` (all of them for ``all``) with type, default and meaning.

    Args:
        cls: the configuration that the section belongs to.
        above: what is written before every key.
    """
    for part in [] if section == "all" else section.split("."):
        cls = _section(cls, part)
    prefix = above if section == "all" else f"{above}{section}."
    return "\n".join(_option_lines(cls, prefix))


def _section(cls: type[Config], part: str) -> type[Config]:
    sections = {name: _config_class(kind) for name, kind in field_types(cls).items()}
    found = sections.get(part)
    if found is None:
        known = [name for name, section in sections.items() if section is not None]
        raise ConfigError(f"no config section {part!r}; sections: {', '.join(known) or 'none here'}, or all")
    return found


def _config_class(kind: Any) -> type[Config] | None:
    """Return the class of a section, or of the entries of a list of sections; None for a plain key."""
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, Config) else None


def _option_lines(cls: type[Config], prefix: str) -> Iterator[str]:
    kinds = field_types(cls)
    for field in dataclasses.fields(cls):
        kind, text = kinds[field.name], field.metadata.get("help", "")
        section = _config_class(kind)
        if section is kind:
            yield from _option_lines(section, f"{prefix}{field.name}.")
            continue
        choices = field.metadata.get("choices")
        shown = " | ".join(map(str, choices)) if choices else type_name(kind)
        yield f"{prefix}{field.name}  ({shown}; {_default(field)})\n    {text}"
        if section is not None:
            yield from _option_lines(section, f"{prefix}{field.name}.N.")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"default {'null' if field.default is None else repr(field.default)}"
    return "required" if field.default_factory is dataclasses.MISSING else "default: empty"


def launch_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run ``megatron-srpo ARGUMENTS`` as ``ranks`` torchrun workers here; return the exit status.

    SIGUSR1 and SIGTERM are passed on to the ranks, which know what to do (session/stop.py).
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        # Not SIGTERM: torchrun would kill the ranks after 30 seconds, too soon for a checkpoint.
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
    )
    platform.limit_threads()
    command = ["-m", "megatron_srpo.cli", *arguments]
    try:
        with _signals_passed_on():
            elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        # The rank itself has said what was wrong; torchrun's own report would only bury it.
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Send requests to stop on to this process's children, who are in sessions of their own."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
