"""Where the parts of a self-play lie."""

from dataclasses import dataclass
from pathlib import Path

#: Of each iteration, relative to its folder.
QUESTIONS, CHALLENGER, SOLVER = "questions.jsonl", "challenger", "solver"
#: Of the self-play, relative to its folder.
ITERATIONS, MEMORY, SKILLS, CONFIG = "iterations.jsonl", "memory", "skills", "config.yaml"


@dataclass(frozen=True)
class IterationFolder:
    """One iteration's folder.

    Attributes:
        root: of the self-play.
        number: of the iteration, from 1.
    """

    root: Path
    number: int

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / f"iteration_{self.number:02d}"

    def run(self, role: str) -> Path:
        """Folder of a training run; ``role`` is "challenger" or "solver"."""
        return self.path / role

    def prompts(self, role: str) -> Path:
        """What that run trains on."""
        return self.path / f"{role}_prompts.jsonl"

    @property
    def responses(self) -> Path:
        """The Challenger's responses, kept while it is trained."""
        return self.path / "kept" / CHALLENGER

    @property
    def pool(self) -> Path:
        """The trained Challenger's answers, block by block."""
        return self.path / "kept" / "pool.jsonl"

    @property
    def votes(self) -> Path:
        """The frozen Solver's votes, block by block."""
        return self.path / "kept" / "votes.jsonl"

    @property
    def questions(self) -> Path:
        """The pool's questions with their votes."""
        return self.path / QUESTIONS
