"""The process that runs verifiers, one answer after the other, in its main thread.

Protocol, over a socket pair shared with the parent (:mod:`megatron_srpo.rewards.pool`): the parent sends the
configuration, then chunks ``[(prompt, response), ...]``. The worker sends READY once, LOADED before it
scores the first answer of a chunk, and one :class:`Score` per answer; or REFUSED with a message when a
verifier cannot be loaded. It ends when the parent closes its side or dies.

An answer is stopped in three ways: SIGALRM raises :class:`TimeLimit` in Python code; a hang in C, which no
exception can interrupt, is killed by the parent; and should the parent be dead by then, by SIGPROF's default
action.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType

from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import ConfigError
from megatron_srpo.rewards.registry import load_verifier
from megatron_srpo.rewards.scoring import failed, score_response
from megatron_srpo.rewards.types import Score

READY, LOADED, REFUSED = "ready", "loaded", "refused"
Chunk = list[tuple[Prompt, str]]

_ALARM_AGAIN_S = 0.5
_KILL_AFTER_S = 2.0


class TimeLimit(BaseException):
    """The time limit of an answer has passed. Not an Exception: verifiers swallow those."""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of the socket until it goes away."""
    # Ctrl-C, and Slurm's signals to every process of a job, are the parent's to handle: an answer whose
    # worker dies would be scored as a failure.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _on_alarm)
    os.dup2(2, 1)  # Verifiers that print must not write into the parent's standard output.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    logging.captureWarnings(True)
    with Connection(descriptor) as connection:
        try:
            _serve(connection)
        except (EOFError, ConnectionError):
            return


def _serve(connection: Connection) -> None:
    config: RewardConfig = connection.recv()
    connection.send((READY, None))
    prepared: set[str] = set()
    while True:
        chunk: Chunk = connection.recv()
        try:
            _load(chunk, prepared, config)
        except ConfigError as error:
            connection.send((REFUSED, str(error)))
            continue
        connection.send((LOADED, None))
        for prompt, response in chunk:
            connection.send(_score_within_limit(prompt, response, config))


def _load(chunk: Chunk, prepared: set[str], config: RewardConfig) -> None:
    """Import and prepare what the chunk needs, then limit the memory that scoring may add."""
    for prompt, _ in chunk:
        key = f"{prompt.task} {prompt.source}"
        if key in prepared:
            continue
        verifier = load_verifier(prompt.task)
        if verifier.prepare is not None:
            _prepare(verifier.prepare, prompt)
        prepared.add(key)
        _limit_memory(config.max_worker_memory_mb)


def _prepare(prepare: Callable[[Prompt], None], prompt: Prompt) -> None:
    """Run a preparation; what fails here fails again, and is reported, when the answer is scored."""
    try:
        prepare(prompt)
    except Exception:  # boundary: third-party code; see above
        logging.getLogger(__name__).debug("preparation for %s failed", prompt.id, exc_info=True)


def _limit_memory(megabytes: int | None) -> None:
    if megabytes is None or sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = in_use + megabytes * 2**20
    resource.setrlimit(
        resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


_armed = False


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    if _armed:
        raise TimeLimit


def _score_within_limit(prompt: Prompt, response: str, config: RewardConfig) -> Score:
    global _armed
    verifier = load_verifier(prompt.task)
    try:
        _armed = True
        # The alarm repeats, because a bare "except:" inside a verifier may swallow the first one.
        signal.setitimer(signal.ITIMER_REAL, config.time_limit_s, _ALARM_AGAIN_S)
        signal.setitimer(signal.ITIMER_PROF, config.time_limit_s + _KILL_AFTER_S)
        score = score_response(verifier, prompt, response, config)
        _armed = False
        return score
    except TimeLimit:
        _armed = False
        return failed(time_limit_message(config))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def time_limit_message(config: RewardConfig) -> str:
    """Return the error of an answer that took too long."""
    return f"the time limit of {config.time_limit_s:g} s passed (reward.time_limit_s)"
