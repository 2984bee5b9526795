"""Verifiers that do what they should not, named by dotted path in the tests of the pool."""

import os
import re
import signal
import sys
import time

from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.types import Score


def act(prompt: Prompt, response: str) -> Score | float:
    """Do what the response says; a plain number is the score."""
    return ACTIONS[response]() if response in ACTIONS else float(response)


def _hang_in_python() -> float:
    while True:
        pass


def _hang_and_swallow() -> float:
    stubborn = time.monotonic() + 0.3
    while True:
        try:
            while True:
                pass
        except BaseException:  # what a careless verifier does; it swallows the first alarm or two
            if time.monotonic() > stubborn:
                raise


def _hang_deaf() -> float:
    """Hang with SIGALRM blocked, as a long call into C does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    while True:
        pass


def _hang_asleep() -> float:
    """Hang without using the processor and deaf to SIGALRM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(600)
    return 1.0


def _power() -> float:
    return float(len(str(9**9**9)))


def _regex_bomb() -> float:
    return 1.0 if re.match("(a+)+$", "a" * 64 + "b") else 0.0


def _exit() -> float:
    os._exit(7)


def _killed() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def _nested() -> float:
    def down(depth: int) -> float:
        return down(depth + 1) + 1.0

    return down(0)


def _memory() -> float:
    return float(len(bytearray(2**33)))


def _modules() -> Score:
    heavy = {"torch", "transformers", "megatron", "sglang", "pyarrow"} & sys.modules.keys()
    return Score(1.0, feedback=" ".join(sorted(heavy)) or "none")


def _print() -> float:
    print("noise on standard output")
    return 1.0


ACTIONS = {
    "hang": _hang_in_python,
    "swallow": _hang_and_swallow,
    "deaf": _hang_deaf,
    "asleep": _hang_asleep,
    "power": _power,
    "regex": _regex_bomb,
    "exit": _exit,
    "killed": _killed,
    "nested": _nested,
    "memory": _memory,
    "modules": _modules,
    "print": _print,
}


def raises(prompt: Prompt, response: str) -> float:
    raise SystemError("the verifier is broken")


def pid(prompt: Prompt, response: str) -> Score:
    return Score(1.0, feedback=str(os.getpid()))


def echo(prompt: Prompt, response: str) -> Score:
    return Score(1.0, feedback=f"{prompt.id} {response}")


not_a_function = 3
