"""One iteration of self-play on one screen, and the loop around it."""

import logging
from functools import partial
from pathlib import Path

import torch.distributed as dist

from megatron_srpo.config.loader import to_yaml
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.report.records import write_whole
from megatron_srpo.rewards.registry import load_function
from megatron_srpo.selfplay.folders import CONFIG
from megatron_srpo.selfplay.game import SelfPlay
from megatron_srpo.selfplay.pool import Truth
from megatron_srpo.selfplay.state import State, read_state
from megatron_srpo.session.build import process_group
from megatron_srpo.session.control import Control, stop_file
from megatron_srpo.session.status import RunStatus
from megatron_srpo.session.stop import StopRequested, StopSignals
from megatron_srpo.training.fence import Fence, claim
from megatron_srpo.weights.agreement import on_first_rank

_log = logging.getLogger(__name__)


def play(config: SelfPlayConfig, signals: StopSignals | None = None) -> bool:
    """Begin a self-play in its folder, or go on with the one that it holds; False when asked to stop.

    Every rank calls this; a default process group that exists already is used and left open.

    Raises:
        UserError: the configuration, a model or a file cannot be used, or an engine fails.
    """
    signals = signals or StopSignals()
    truth = load_truth(config.truth)
    timeout = max(
        config.challenger.training.distributed_timeout_s, config.solver.training.distributed_timeout_s
    )
    with process_group(timeout):
        fence, state = on_first_rank(lambda: _take_over(config))
        control = Control(fence, signals)
        with (
            RunStatus(fence, config.iterations, dist.get_rank(), state.iteration - 1) as status,
            SelfPlay(config, state, control, signals, status, truth) as game,
        ):
            try:
                while not game.over:
                    play_iteration(game)
            except StopRequested as request:
                game.say(f"{request} in iteration {game.state.iteration}; continue with --resume")
                status.stopped(str(request), game.state.iteration - 1)
                return False
            status.finished()
    return True


def play_iteration(game: SelfPlay) -> None:
    """Train the Challenger, let it write, let the Solver judge, remember, train the Solver."""
    game.do("challenger", game.train_challenger)
    game.do("questions", game.write_questions)
    game.do("votes", game.vote)
    game.do("memory", game.remember)
    game.do("solver", game.train_solver)
    game.do("summary", game.finish_iteration)


def _take_over(config: SelfPlayConfig) -> tuple[Fence, State]:
    root = Path(config.output_dir)
    fence = claim(root)
    stop_file(root).unlink(missing_ok=True)
    fence.remove_leftovers(root)
    write_whole(root / CONFIG, [to_yaml(config)])
    return fence, read_state(root)


def load_truth(name: str | None) -> Truth | None:
    """Import the function that knows the truth.

    Raises:
        ConfigError: there is no such function.
    """
    if name is None:
        return None
    module, _, function = name.partition(":")
    if not (module and function):
        raise ConfigError(f"truth = {name!r} is no package.module:function")
    return partial(_ask, load_function(name, "truth ="))


def _ask(truth: Truth, question: str) -> str | None:
    try:
        return truth(question)
    except Exception as error:  # boundary: a user's function may fail in any way at what a model wrote
        _log.warning("truth of %.200r: %s: %s; taken for unknown", question, type(error).__name__, error)
        return None
