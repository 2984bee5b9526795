"""A self-play on one rank: where it is, and one method per phase of an iteration."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.loop import train
from megatron_srpo.selfplay.blocks import on_first_rank_patiently
from megatron_srpo.selfplay.challenger import ChallengerScorer
from megatron_srpo.selfplay.first_rank import FirstRank
from megatron_srpo.selfplay.folders import CHALLENGER, SOLVER, IterationFolder
from megatron_srpo.selfplay.pool import Truth
from megatron_srpo.selfplay.questions import challenger_messages
from megatron_srpo.selfplay.runs import training_run, write_rows
from megatron_srpo.selfplay.state import State, write_state
from megatron_srpo.session.build import open_run
from megatron_srpo.session.control import Control
from megatron_srpo.session.preflight import check_output, is_started
from megatron_srpo.session.scorer import Embedding, Scorer, ScorerParts
from megatron_srpo.session.status import RunStatus
from megatron_srpo.session.stop import StopRequested, StopSignals
from megatron_srpo.training.exchange import from_first_rank
from megatron_srpo.weights.agreement import on_first_rank, together


class SelfPlay:
    """The state of a self-play. Use as a context manager: it ends what was started for it.

    Args:
        truth: maps a question to its true answer; None where none is known.
        signals: this rank's requests to stop.
    """

    def __init__(
        self,
        config: SelfPlayConfig,
        state: State,
        control: Control,
        signals: StopSignals,
        status: RunStatus,
        truth: Truth | None,
    ) -> None:
        self.config, self.state = config, state
        self._control, self._signals, self._status = control, signals, status
        self._root = Path(config.output_dir)
        self._first = FirstRank(config, control, truth, self.say)

    def __enter__(self) -> "SelfPlay":
        return self

    def __exit__(self, *exception: object) -> None:
        self._first.close()

    @property
    def over(self) -> bool:
        """Whether all iterations are done."""
        return self.state.iteration > self.config.iterations

    @property
    def folder(self) -> IterationFolder:
        """Of the running iteration."""
        return IterationFolder(self._root, self.state.iteration)

    def do(self, phase: str, work: Callable[[], None]) -> None:
        """Do a phase, unless it is done already, and note that it is."""
        if self.over or self.state.phase != phase:
            return
        self._control.heed()
        self.say(f"iteration {self.state.iteration} of {self.config.iterations}: {phase}")
        began = time.monotonic()
        work()
        after = from_first_rank(self.state.after(time.monotonic() - began))
        on_first_rank(lambda: self._advance(after))
        self.state = after
        self._status.running(after.iteration - 1)

    def _advance(self, state: State) -> None:
        self._control.fence.check()
        write_state(self._root, state)

    def say(self, text: str) -> None:
        """Show a line, on the first rank."""
        if dist.get_rank() == 0:
            print(text, flush=True)

    def train_challenger(self) -> None:
        """Train the Challenger on the rewards of the frozen Solver's votes."""
        row = {"id": "0", "prompt": challenger_messages(self.config.prompt)[-1]["content"]}
        on_first_rank(lambda: write_rows(self.folder.prompts(CHALLENGER), [row]))
        embedding = Embedding(self._open_scorer, self.folder.responses, (self._root,))
        self._train(CHALLENGER, embedding)

    def write_questions(self) -> None:
        """Let the trained Challenger write the pool."""
        on_first_rank_patiently(lambda: self._first.write_pool(self.folder), self._control)

    def vote(self) -> None:
        """Let the frozen Solver vote on the pool."""
        on_first_rank_patiently(lambda: self._first.vote(self.folder), self._control)

    def remember(self) -> None:
        """Measure the valid questions' skills, and put them into the memory."""
        on_first_rank_patiently(lambda: self._first.remember(self.folder), self._control)

    def train_solver(self) -> None:
        """Train the Solver on valid questions and remembered ones; without any it stays as it is."""
        if on_first_rank(lambda: self._first.write_training_set(self.folder)):
            self._train(SOLVER, Embedding(stop_folders=(self._root,)))
        else:
            band = f"{self.config.votes.low:g} to {self.config.votes.high:g}"
            self.say(f"no question has a share of {band}: the Solver keeps its weights in this iteration")

    def finish_iteration(self) -> None:
        """Write the iteration's numbers and the report; remove what is no longer needed."""
        seconds = self.state.seconds
        on_first_rank_patiently(lambda: self._first.finish_iteration(self.folder, seconds), self._control)

    def _train(self, role: str, embedding: Embedding) -> None:
        config, resume = on_first_rank(lambda: self._training_run(role))
        self._train_run(config, resume, embedding)
        gc.collect()  # models hold circles of references
        platform.give_back_memory()

    def _training_run(self, role: str) -> tuple[RunConfig, bool]:
        config = training_run(self.config, role, self.folder)
        resume = is_started(config)
        check_output(config, resume)
        return config, resume

    def _train_run(self, config: RunConfig, resume: bool, embedding: Embedding) -> None:
        with open_run(config, resume, self._signals, embedding) as run:
            finished = train(run)
        if not finished:
            raise StopRequested(self._signals.asked or "file 'stop'")

    @contextmanager
    def _open_scorer(self, parts: ScorerParts) -> Iterator[Scorer]:
        first = dist.get_rank() == 0
        with ExitStack() as stack:
            judges = together(lambda: self._first.judges(self.folder, parts, stack) if first else None)
            yield ChallengerScorer(self.config, judges, parts.groups, parts.control)
