"""A verifier that tests can hold: it is copied into their project and runs in the ranks' reward workers."""

import os
import time
from pathlib import Path

from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.types import Score

HOLD, SCORED = Path("state/hold"), Path("state/scored")


def verify(prompt: Prompt, response: str) -> Score:
    """Wait while ``state/hold`` exists, note the prompt, and reward every other length."""
    while HOLD.exists():
        time.sleep(0.05)
    line = f"{prompt.metadata['number']}\n".encode()
    file = os.open(SCORED, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)  # in one piece, for several nodes write here
    os.close(file)
    return Score(float(len(response) % 2))
