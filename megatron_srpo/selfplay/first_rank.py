"""What the first rank does alone between training runs, and for the Challenger's reward within one.

All of it may be killed at any moment; done again, it computes only what its files lack.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_srpo import platform
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.report.records import RecordFile, read_records
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.selfplay.blocks import Blocks, check_pause
from megatron_srpo.selfplay.challenger import Judges
from megatron_srpo.selfplay.folders import CHALLENGER, ITERATIONS, MEMORY, SOLVER, IterationFolder
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.pool import Truth, judge_pool, write_pool
from megatron_srpo.selfplay.progress import Counter
from megatron_srpo.selfplay.report import write_self_play_report
from megatron_srpo.selfplay.runs import base_run, latest_model, read_rows, write_rows
from megatron_srpo.selfplay.skill.measure import open_skill_measure
from megatron_srpo.selfplay.summary import iteration_row
from megatron_srpo.selfplay.training_set import remembered_questions, training_set
from megatron_srpo.selfplay.types import SkillMeasure
from megatron_srpo.selfplay.votes import VoteBook
from megatron_srpo.session.control import Control
from megatron_srpo.session.frozen import FrozenModel
from megatron_srpo.session.scorer import ScorerParts


class FirstRank:
    """Holds what measures skills from its first use to :meth:`close`.

    Methods are given the folder of the running iteration. They raise UserErrors, and Paused where the
    self-play shall stop.

    Args:
        truth: maps a question to its true answer; None where none is known.
        say: shows a line.
    """

    def __init__(
        self, config: SelfPlayConfig, control: Control, truth: Truth | None, say: Callable[[str], None]
    ) -> None:
        self._config, self._control, self._truth, self._say = config, control, truth, say
        self._root = Path(config.output_dir)
        self._open = ExitStack()

    def close(self) -> None:
        """End what was started."""
        self._open.close()

    def judges(self, folder: IterationFolder, parts: ScorerParts, stack: ExitStack) -> Judges:
        """Return what the Challenger's reward is made from; the stack ends it."""
        solver = self._frozen(SOLVER, folder, folder.number, parts.say, stack)

        def rest() -> None:
            solver.park()
            platform.give_back_memory()

        votes = self._votes(folder, solver, parts.rewards, parts.control)
        return Judges(votes, self._skills, self._memory, folder.number, rest)

    def write_pool(self, folder: IterationFolder) -> None:
        """Let the trained Challenger write the pool."""
        with ExitStack() as stack, Counter("questions", self._say) as counter:
            # The weights after this iteration's training are those at the beginning of the next.
            challenger = self._frozen(CHALLENGER, folder, folder.number + 1, self._say, stack)
            write_pool(
                self._config,
                challenger,
                Blocks(folder.pool),
                folder.number,
                lambda: check_pause(self._control),
                counter.show,
            )

    def vote(self, folder: IterationFolder) -> None:
        """Let the frozen Solver vote on the pool."""
        texts = [item["text"] for item in Blocks(folder.pool).items]
        with (
            ExitStack() as stack,
            RewardPool(self._config.solver.reward) as rewards,
            Counter("votes on questions", self._say) as counter,
        ):
            solver = self._frozen(SOLVER, folder, folder.number, self._say, stack)
            votes = self._votes(folder, solver, rewards, self._control, counter.show)
            rows = judge_pool(self._config, texts, votes, rewards, self._truth, folder.number)
        write_rows(folder.questions, rows)

    def remember(self, folder: IterationFolder) -> None:
        """Measure the valid questions' skills, and put them into the memory."""
        skills, memory = self._skills, self._memory
        if skills is None or memory is None:
            return
        entries = remembered_questions(folder.number, read_rows(folder.questions))
        measured = skills.measure([entry.question for entry in entries])
        filled = [
            dataclasses.replace(entry, code=skill.code)
            for entry, skill in zip(entries, measured, strict=True)
        ]
        vectors_ND = np.array([skill.vector_D for skill in measured], np.float32)
        memory.append(folder.number, filled, vectors_ND.reshape(len(filled), skills.dimension))

    def write_training_set(self, folder: IterationFolder) -> bool:
        """Write what the Solver trains on; False where there is nothing new."""
        new = remembered_questions(folder.number, read_rows(folder.questions))
        memory = self._memory if self._config.replay else None
        past = None if memory is None else memory.before(folder.number)
        seed = request_seed(self._config.seed, "replay", folder.number, 0, 0)
        rows = training_set(new, past, self._config.replay, seed)
        write_rows(folder.prompts(SOLVER), rows if new else [])
        return bool(new)

    def finish_iteration(self, folder: IterationFolder, seconds: Mapping[str, float]) -> None:
        """Write the iteration's numbers and the report; remove what is no longer needed.

        Args:
            seconds: per finished phase.
        """
        path = self._root / ITERATIONS
        if folder.number not in {row["iteration"] for row in read_records(path)}:
            questions, trained_on = read_rows(folder.questions), read_rows(folder.prompts(SOLVER))
            row = iteration_row(folder, questions, trained_on, seconds, self._skill_numbers(folder))
            RecordFile(path, one_per_step=True).append([row])
        self._prune(folder)
        self._say(f"report: {write_self_play_report(self._root)}")

    def _frozen(
        self,
        role: str,
        folder: IterationFolder,
        iteration: int,
        say: Callable[[str], None],
        stack: ExitStack,
    ) -> FrozenModel:
        """Return a role's model as it is at the beginning of an iteration."""
        model = latest_model(self._config, role, iteration)
        frozen = FrozenModel(base_run(self._config, role), model, folder.path / "engines" / role, say)
        stack.callback(frozen.close)
        return frozen

    def _votes(
        self,
        folder: IterationFolder,
        solver: FrozenModel,
        rewards: RewardPool,
        control: Control,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> VoteBook:
        def check() -> None:
            check_pause(control)

        return VoteBook(self._config, solver, rewards, folder.votes, folder.number, check, on_progress)

    @cached_property
    def _skills(self) -> SkillMeasure | None:
        if not self._config.skill.measured:
            return None
        measure = open_skill_measure(self._config)
        self._open.callback(measure.close)
        self._say(f"skills: {measure.description}")
        return measure

    @property
    def _memory(self) -> MemoryBank | None:
        if self._skills is None:
            return None
        return MemoryBank.open(self._root / MEMORY, self._skills.name, self._skills.dimension)

    def _skill_numbers(self, folder: IterationFolder) -> dict[str, float]:
        memory = self._memory
        if memory is None or self._skills is None:
            return {}
        own = [entry for entry in memory.everything().entries if entry.iteration == folder.number]
        unparsed = sum(not skill.parsed for skill in self._skills.measure([one.question for one in own]))
        return {"memory/size": len(memory), **({"skills/unparsed": unparsed / len(own)} if own else {})}

    def _prune(self, folder: IterationFolder) -> None:
        """Remove the checkpoints that this iteration's runs began with, and responses kept for resuming."""
        shutil.rmtree(folder.responses, ignore_errors=True)
        before = IterationFolder(self._root, folder.number - 1)
        for role in (CHALLENGER, SOLVER):
            if (folder.run(role) / "model").is_dir():
                shutil.rmtree(before.run(role) / "checkpoints", ignore_errors=True)
