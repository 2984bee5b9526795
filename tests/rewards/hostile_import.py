"""A verifier whose module ends its process while a worker imports it, but not while a test does."""

import os
import sys

if "pytest" not in sys.modules:
    os._exit(3)


def verify(prompt: object, response: str) -> float:
    return 1.0
