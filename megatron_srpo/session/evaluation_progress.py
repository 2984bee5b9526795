"""Shows how far an evaluation is: a bar on a terminal, a line per block in a log."""

import time
from collections.abc import Callable
from types import TracebackType

from megatron_srpo.report.console import counting_bar
from megatron_srpo.session.measure import Block, Questions
from megatron_srpo.session.saved import SavedResponses


class EvaluationProgress:
    """Counts responses. Use as a context manager.

    Args:
        samples: responses to each prompt.
        say: shows a line where there is no terminal.
    """

    def __init__(
        self, questions: Questions, saved: SavedResponses, samples: int, say: Callable[[str], None]
    ) -> None:
        self._total = len(questions.prompts) * samples
        rows = saved.all_rows
        self._done, self._right = len(rows), sum(row.correct for row in rows)
        self._tokens, self._began = 0, time.monotonic()
        self._say = say
        self._bar = counting_bar()
        self._task = self._bar.add_task(self._text(), total=self._total, completed=self._done)
        if self._done:
            say(f"going on after {self._done} of {self._total} responses")

    def __enter__(self) -> "EvaluationProgress":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def response(self, done: int, of_block: int) -> None:
        """Count the responses of the block that is waited for."""
        self._bar.update(self._task, completed=self._done + done)

    def block(self, block: Block) -> None:
        """Count a block that has been scored and saved."""
        self._done += len(block.rows)
        self._right += sum(row.correct for row in block.rows)
        self._tokens += sum(row.tokens for row in block.rows)
        self._bar.update(self._task, completed=self._done, description=self._text())
        if self._bar.disable:
            rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
            self._say(f"{self._done} of {self._total} responses, {self._text()}, {rate:.0f} tokens/s")

    def _text(self) -> str:
        return f"{self._right / self._done:.1%} right" if self._done else "sampling"
