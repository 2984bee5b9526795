"""Questions to skills: coder, embedder, and a cache on disk between them and the caller."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import batched
from pathlib import Path
