"""``python -m megatron_srpo.rollout.sglang.serve ARGUMENTS`` is ``python -m sglang.launch_server ARGUMENTS``.

It differs in this: without CUDA, SGLang's imports are prepared first, in this process and in those that it
spawns (they import this module again, as ``__mp_main__``); the API key may come from the environment; and

    --die-with PID    (first) end, with all children, when the process PID that started it ends
    --check           start nothing: read {name: value} as JSON from standard input and print as JSON either
                      {"arguments": [...]} or {"error": "..."}
"""

import argparse
import contextlib
import ctypes
import difflib
import importlib.metadata
import io
import json
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from megatron_srpo import platform
from megatron_srpo.errors import EngineError

if __name__ in ("__main__", "__mp_main__"):
    platform.prepare_sglang()

_PLUGINS = "sglang.srt.plugins"
_PLUGIN = "megatron_srpo"
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run the server until it is told to end."""
    if arguments[:1] == ["--check"]:
        print(json.dumps(check(json.load(sys.stdin))))
        return
    api_key = platform.take_sglang_api_key()  # before anything is started that would inherit it
    if arguments[:1] == ["--die-with"]:
        die_with(int(arguments[1]))
        arguments = arguments[2:]
        stay_deaf()
    if not platform.has_cuda():
        require_plugin()
    # In one word: a random key may begin with "-", and would be taken for an option.
    run(arguments + ([f"--api-key={api_key}"] if api_key else []))


def run(arguments: list[str]) -> None:
    """Do what ``sglang.launch_server`` does when it is the main module."""
    from sglang.launch_server import load_plugins, run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    try:
        run_server(prepare_server_args(arguments))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def die_with(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent ends; SGLang's children do the same to it.

    The parent is the *thread* that started this process: see ``process.py``.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"the process {parent} that started this server has ended")


def stay_deaf() -> None:
    """Keep blocked what was blocked when this process was started (``process.keep_signals_away``).

    Python's resource tracker, which multiprocessing starts with the first child, leaves SIGTERM unblocked
    behind it. Started now, it is not started then.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    multiprocessing.resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def require_plugin() -> None:
    """Make sure that SGLang will find the plugin, without which seeds would silently be ignored.

    Raises:
        EngineError: the package is not installed, or was installed before it had the plugin.
    """
    if not importlib.metadata.entry_points(group=_PLUGINS, name=_PLUGIN):
        raise EngineError(
            f"the installed package declares no entry point {_PLUGIN!r} in the group {_PLUGINS!r}; "
            "install it again: pip install --no-deps --editable ."
        )


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options into command-line arguments of the installed SGLang.

    Returns:
        ``{"arguments": [...]}``, or ``{"error": "..."}`` that names the option at fault.
    """
    # `add_cli_args` may warn on standard output, which belongs to the answer.
    with contextlib.redirect_stdout(sys.stderr):
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
        ServerArgs.add_cli_args(parser)
    known = _actions(parser)
    arguments: list[str] = []
    try:
        for name, value in options.items():
            if name not in known:
                raise EngineError(_unknown(name, known))
            arguments += _tokens(parser, known[name], name, value)
    except EngineError as error:
        return {"error": str(error)}
    return {"arguments": arguments}


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Map each option's name, with underscores, to its action; aliases included."""
    found = {}
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                found[flag.removeprefix("--").replace("-", "_")] = action
        if action.option_strings and action.dest != "help":
            found.setdefault(action.dest, action)
    del found["help"]
    return found


def _unknown(name: str, known: Mapping[str, argparse.Action]) -> str:
    version = importlib.metadata.version("sglang")
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see python -m sglang.launch_server --help"
    return f"sglang.options.{name}: SGLang {version} has no such option; {hint}"


def _tokens(parser: argparse.ArgumentParser, action: argparse.Action, name: str, value: Any) -> list[str]:
    """Write one option as command-line arguments and let SGLang's own parser try them."""
    tokens = _write(action, name, value)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            # Required options (the model) come from elsewhere.
            for other in parser._actions:
                other.required = False
            parsed = parser.parse_args(tokens)
    except (argparse.ArgumentError, SystemExit) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentError) else message.getvalue().strip()
        raise EngineError(f"sglang.options.{name} = {value!r} is refused by SGLang: {reason}") from error
    if isinstance(value, bool) and vars(parsed)[action.dest] is not value:
        raise EngineError(f"sglang.options.{name} = {value!r} cannot be said to SGLang; leave the option out")
    return tokens


def _write(action: argparse.Action, name: str, value: Any) -> list[str]:
    flag = next(flag for flag in action.option_strings if flag.startswith("--"))
    either = isinstance(action, argparse.BooleanOptionalAction)
    switch = action.nargs == 0
    if (switch or either) != isinstance(value, bool):
        expected = "true or false" if switch or either else "a value, not true or false"
        raise EngineError(f"sglang.options.{name} = {value!r}; SGLang expects {expected}")
    if either:
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if switch:
        return [flag] if value else []
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EngineError as refusal:
        raise SystemExit(str(refusal)) from None
