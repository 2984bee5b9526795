"""A self-play on one rank: its parts, and one method per phase of an iteration.

Every phase leaves files, may be killed at any moment, and done again computes only what they lack.
"""

import dataclasses
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.loop import train
from megatron_srpo.report.records import RecordFile, read_records
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.selfplay.blocks import Blocks, check_pause, on_first_rank_patiently
from megatron_srpo.selfplay.challenger import ChallengerScorer, Judges
from megatron_srpo.selfplay.folders import (
    CHALLENGER,
    ITERATIONS,
    MEMORY,
    SOLVER,
    IterationFolder,
)
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.pool import Truth, judge_pool, write_pool
from megatron_srpo.selfplay.progress import Counter
from megatron_srpo.selfplay.questions import challenger_messages
from megatron_srpo.selfplay.report import write_self_play_report
from megatron_srpo.selfplay.runs import latest_model, read_rows, training_run, write_rows
from megatron_srpo.selfplay.skill.measure import open_skill_measure
from megatron_srpo.selfplay.state import State, write_state
from megatron_srpo.selfplay.summary import iteration_row
from megatron_srpo.selfplay.training_set import remembered_questions, training_set
from megatron_srpo.selfplay.types import SkillMeasure
from megatron_srpo.selfplay.votes import VoteBook
from megatron_srpo.session.build import open_run
from megatron_srpo.session.control import Control
from megatron_srpo.session.frozen import FrozenModel
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
        self._control, self._signals, self._status, self._truth = control, signals, status, truth
        self._root = Path(config.output_dir)
        self._open = ExitStack()

    def __enter__(self) -> "SelfPlay":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

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

    # The phases.

    def train_challenger(self) -> None:
        """Train the Challenger on the rewards of the frozen Solver's votes."""
        row = {"id": "0", "prompt": challenger_messages(self.config.prompt)[-1]["content"]}
        on_first_rank(lambda: write_rows(self.folder.prompts(CHALLENGER), [row]))
        embedding = Embedding(self._open_scorer, self.folder.responses, (self._root,))
        self._train(CHALLENGER, embedding)

    def write_questions(self) -> None:
        """Let the trained Challenger write the pool."""
        on_first_rank_patiently(self._write_pool, self._control)

    def vote(self) -> None:
        """Let the frozen Solver vote on the pool."""
        on_first_rank_patiently(self._vote, self._control)

    def remember(self) -> None:
        """Measure the valid questions' skills, and put them into the memory."""
        if self.config.skill.measured:
            on_first_rank_patiently(self._remember, self._control)

    def train_solver(self) -> None:
        """Train the Solver on valid questions and remembered ones; without any it stays as it is."""
        if on_first_rank(self._write_training_set):
            self._train(SOLVER, Embedding(stop_folders=(self._root,)))
        else:
            band = f"{self.config.votes.low:g} to {self.config.votes.high:g}"
            self.say(f"no question has a share of {band}: the Solver keeps its weights in this iteration")

    def finish_iteration(self) -> None:
        """Write the iteration's numbers and the report; remove what is no longer needed."""
        on_first_rank_patiently(self._finish_iteration, self._control)

    # What they do on the first rank, or for training on all.

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
        with ExitStack() as stack:
            judges = together(lambda: self._judges(parts, stack) if dist.get_rank() == 0 else None)
            yield ChallengerScorer(self.config, judges, parts.groups, parts.control)

    def _judges(self, parts: ScorerParts, stack: ExitStack) -> Judges:
        solver = self._frozen(SOLVER, self.state.iteration, parts.say, stack)

        def rest() -> None:
            solver.park()
            platform.give_back_memory()

        votes = self._votes(solver, parts.rewards, lambda: check_pause(parts.control))
        return Judges(votes, self._skills, self._memory, self.state.iteration, rest)

    def _frozen(self, role: str, iteration: int, say: Callable[[str], None], stack: ExitStack) -> FrozenModel:
        """Return a role's model as it is at the beginning of an iteration."""
        base = self.config.challenger if role == CHALLENGER else self.config.solver
        model = latest_model(self.config, role, iteration)
        frozen = FrozenModel(base, model, self.folder.path / "engines" / role, say)
        stack.callback(frozen.close)
        return frozen

    def _votes(
        self,
        solver: FrozenModel,
        rewards: RewardPool,
        check: Callable[[], None],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> VoteBook:
        path, iteration = self.folder.votes, self.state.iteration
        return VoteBook(self.config, solver, rewards, path, iteration, check, on_progress)

    @cached_property
    def _skills(self) -> SkillMeasure | None:
        if not self.config.skill.measured:
            return None
        measure = open_skill_measure(self.config)
        self._open.callback(measure.close)
        self.say(f"skills: {measure.description}")
        return measure

    @property
    def _memory(self) -> MemoryBank | None:
        if self._skills is None:
            return None
        return MemoryBank.open(self._root / MEMORY, self._skills.name, self._skills.dimension)

    def _check(self) -> None:
        check_pause(self._control)

    def _write_pool(self) -> None:
        with ExitStack() as stack, Counter("questions", self.say) as counter:
            # The weights after this iteration's training are those at the beginning of the next.
            challenger = self._frozen(CHALLENGER, self.state.iteration + 1, self.say, stack)
            blocks = Blocks(self.folder.pool)
            write_pool(self.config, challenger, blocks, self.state.iteration, self._check, counter.show)

    def _vote(self) -> None:
        texts = [item["text"] for item in Blocks(self.folder.pool).items]
        with (
            ExitStack() as stack,
            RewardPool(self.config.solver.reward) as rewards,
            Counter("votes on questions", self.say) as counter,
        ):
            solver = self._frozen(SOLVER, self.state.iteration, self.say, stack)
            votes = self._votes(solver, rewards, self._check, counter.show)
            rows = judge_pool(self.config, texts, votes, rewards, self._truth, self.state.iteration)
        write_rows(self.folder.questions, rows)

    def _remember(self) -> None:
        skills, memory = self._skills, self._memory
        assert skills is not None and memory is not None
        entries = remembered_questions(self.state.iteration, read_rows(self.folder.questions))
        measured = skills.measure([entry.question for entry in entries])
        filled = [
            dataclasses.replace(entry, code=skill.code)
            for entry, skill in zip(entries, measured, strict=True)
        ]
        vectors_ND = np.array([skill.vector_D for skill in measured], np.float32)
        memory.append(self.state.iteration, filled, vectors_ND.reshape(len(filled), skills.dimension))

    def _write_training_set(self) -> bool:
        new = remembered_questions(self.state.iteration, read_rows(self.folder.questions))
        memory = self._memory if self.config.replay else None
        past = None if memory is None else memory.before(self.state.iteration)
        seed = request_seed(self.config.seed, "replay", self.state.iteration, 0, 0)
        rows = training_set(new, past, self.config.replay, seed)
        write_rows(self.folder.prompts(SOLVER), rows if new else [])
        return bool(new)

    def _finish_iteration(self) -> None:
        number, folder = self.state.iteration, self.folder
        path = self._root / ITERATIONS
        if number not in {row["iteration"] for row in read_records(path)}:
            row = iteration_row(
                folder,
                read_rows(folder.questions),
                read_rows(folder.prompts(SOLVER)),
                self.state.seconds,
                self._skill_numbers(),
            )
            RecordFile(path, one_per_step=True).append([row])
        self._prune()
        self.say(f"report: {write_self_play_report(self._root)}")

    def _skill_numbers(self) -> dict[str, float]:
        memory = self._memory
        if memory is None or self._skills is None:
            return {}
        own = [entry for entry in memory.everything().entries if entry.iteration == self.state.iteration]
        unparsed = sum(not skill.parsed for skill in self._skills.measure([one.question for one in own]))
        return {"memory/size": len(memory), **({"skills/unparsed": unparsed / len(own)} if own else {})}

    def _prune(self) -> None:
        """Remove the checkpoints that this iteration's runs began with, and responses kept for resuming."""
        shutil.rmtree(self.folder.responses, ignore_errors=True)
        before = IterationFolder(self._root, self.state.iteration - 1)
        for role in (CHALLENGER, SOLVER):
            if (self.folder.run(role) / "model").is_dir():
                shutil.rmtree(before.run(role) / "checkpoints", ignore_errors=True)
