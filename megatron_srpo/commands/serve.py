"""Start SGLang servers on this machine for a run elsewhere, and say in a shared folder where they are.

The run finds them with rollout.sglang.registry=FOLDER; rollout.sglang.servers counts all slots, on all
machines. Servers begin with the weights of model.path; the run gives them the current ones before it uses
them. One that dies is started again; a machine that is lost may be replaced by another one that takes the
same slots. The command ends with FOLDER/close, with Ctrl-C, and with SIGTERM (unless SIGTERM was ignored when
it was started, as under a launcher that ends it in another way).

The servers listen at an address that other machines reach. Nobody is served without the key in
FOLDER/api_key, which only its owner can read; it travels unencrypted, as everything does between the run and
its servers.
"""

import argparse
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from megatron_srpo.commands.common import add_config_arguments, positive_integer, run_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo serve``."""
    add_config_arguments(parser)
    parser.add_argument(
        "--register", metavar="FOLDER", help="registry of servers (default: rollout.sglang.registry)"
    )
    parser.add_argument(
        "--slot", type=slot_number, default=0, metavar="K", help="first slot to fill (default 0)"
    )
    parser.add_argument(
        "--slots",
        type=positive_integer,
        default=1,
        metavar="N",
        help="servers to start on this machine, in slots K to K+N-1 (default 1)",
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address of this machine at which servers listen and others reach them (default: found)",
    )


def slot_number(text: str) -> int:
    """Read an argument that numbers something."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; give a whole number from 0")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    config = run_config(arguments)
    folder = arguments.register or config.rollout.sglang.registry
    slots = range(arguments.slot, arguments.slot + arguments.slots)
    _check(config, folder, slots)
    # Imported here: they take torch along.
    from megatron_srpo.rollout.sglang.endpoint import can_listen, own_address
    from megatron_srpo.rollout.sglang.keeper import Keeper
    from megatron_srpo.rollout.sglang.registry import Registry

    host = arguments.host or own_address()
    if not can_listen(host):
        raise ConfigError(f"--host {host} is not an address of this machine; give one that is, or none")
    chosen = dataclasses.replace(config.rollout.sglang, host=host)
    with _told_to_end() as told:
        Keeper(
            chosen,
            config.model.path,
            config.model.dtype,
            Path(config.output_dir) / "engine",
            Registry(folder, _say),
            slots,
            _say,
        ).run(told.is_set)
    return 0


def _check(config: RunConfig, folder: str, slots: range) -> None:
    chosen = config.rollout.sglang
    if not folder:
        raise ConfigError("no registry is named; give --register FOLDER, or rollout.sglang.registry")
    if chosen.urls:
        raise ConfigError(
            f"rollout.sglang.urls = {list(chosen.urls)} names external servers, which the run would use "
            "instead of registered ones; remove it"
        )
    if slots.stop > chosen.servers:
        raise ConfigError(
            f"slots {slots.start} to {slots.stop - 1} of rollout.sglang.servers = {chosen.servers}, counted "
            "from 0; the run would not use them all: raise it, or lower --slot or --slots"
        )


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, and ignore SIGUSR1, which Slurm sends to whole jobs."""
    told = threading.Event()
    before = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, signal.SIG_IGN)}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda *_: told.set())
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, flush=True)
