"""A run on one rank: the parts put together, and one method per line of the training step."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megatron_srpo.algorithms import Algorithm, build_algorithm
from megatron_srpo.algorithms.types import (
    Assignment,
    BehaviourLogProbs,
    Route,
    TeacherEvidence,
    TokenStreams,
)
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.training import mini_batch_prompts
from megatron_srpo.data.chat import ChatTokenizer, render_prompt
from megatron_srpo.data.sampler import PromptSampler
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import EngineError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.report.histograms import LengthCounts
from megatron_srpo.report.samples import RolloutSample
from megatron_srpo.rewards.types import Score
from megatron_srpo.rollout.engine import WeightPublisher
from megatron_srpo.rollout.types import SamplingParams
from megatron_srpo.session.control import Control
from megatron_srpo.session.dynamic_sampling import Discarded, DynamicSampling, discarded_metrics
from megatron_srpo.session.evaluate import Evaluator
from megatron_srpo.session.lessons import TeacherPrompts
from megatron_srpo.session.models import build_dealer
from megatron_srpo.session.recording import Recorder
from megatron_srpo.session.rollouts import (
    PromptInPlace,
    Rollout,
    ScoredBatch,
    make_rollouts,
    replica_share,
    sampling_requests,
)
from megatron_srpo.session.samples import Story, chosen_samples, samples_due
from megatron_srpo.session.sampling import Sampling, Ticket
from megatron_srpo.session.scorer import Scorer
from megatron_srpo.session.status import RunStatus
from megatron_srpo.session.step_metrics import (
    balance_metrics,
    check_agreement,
    length_counts,
    replica_facts,
    rollout_metrics,
    update_metrics,
)
from megatron_srpo.session.stop import StopRequested
from megatron_srpo.training.checkpoint import save_checkpoint
from megatron_srpo.training.exchange import from_first_rank, gather_over_replicas
from megatron_srpo.training.loss import TrainingSample
from megatron_srpo.training.scoring import TokenScores
from megatron_srpo.training.shared_work import ReplicaWork, SharedWork
from megatron_srpo.training.teacher import TeacherPass
from megatron_srpo.training.trainer import Trainer, UpdateResult
from megatron_srpo.weights.export import save_hf


@dataclass(frozen=True)
class SampledAhead:
    """A step's prompts, whose responses were asked for."""

    prompts: list[PromptInPlace]
    ticket: Ticket


@dataclass(frozen=True)
class Parts:
    """What a run is made of (``session/build.py`` makes it)."""

    config: RunConfig
    arch: Qwen3Architecture
    groups: ProcessGroups
    tokenizer: ChatTokenizer
    sampler: PromptSampler
    trainer: Trainer
    sampling: Sampling
    evaluation_sampling: Sampling
    publisher: WeightPublisher
    scorer: Scorer
    teacher_prompts: TeacherPrompts
    evaluator: Evaluator
    recorder: Recorder
    control: Control
    status: RunStatus


class Run:
    """The state of training: ``step`` steps are done; ``training_seconds`` of training time are spent."""

    def __init__(self, parts: Parts, step: int = 0, training_seconds: float = 0.0) -> None:
        self.parts = parts
        self.config = parts.config
        self.groups = parts.groups
        self.control = parts.control
        self.status = parts.status
        self.trainer = parts.trainer
        self.recorder = parts.recorder
        self.algorithm: Algorithm = build_algorithm(parts.config.algorithm)
        self.dealer = build_dealer(parts.config, parts.arch, parts.groups)
        self.step = step
        self.training_seconds = training_seconds
        self.row: dict[str, float] = {"step": step}
        self.samples: list[RolloutSample] = []
        self.lengths: LengthCounts | None = None
        self.saved_step = step
        self.unrecorded = False
        self.ahead: deque[SampledAhead] = deque()
        self.sync_metrics: dict[str, float] = {}
        self.ended_early: str | None = None
        rounds = self.config.rollout.dynamic_sampling_rounds
        self.dynamic = DynamicSampling(rounds, self.config.algorithm)
        self.discarded: Discarded | None = None
        self.mini_batch = mini_batch_prompts(
            self.config.training, self.config.rollout.prompts_per_step, self.groups.dp_size
        )

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.ended_early is not None or self.step >= self.config.training.steps

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a phase of the step."""
        return self.recorder.phase(name)

    def prompts_of(self, step: int, again: int = 0) -> list[PromptInPlace]:
        """Return this replica's share of the prompts of the step after ``step`` steps.

        Args:
            again: round of dynamic sampling, whose prompts lie between those of two steps.
        """
        size = self.config.rollout.prompts_per_step
        prompts = self.parts.sampler.batch(step * (1 + self.dynamic.rounds) + again, size)
        mine = replica_share(size, self.mini_batch, self.groups.dp_rank, self.groups.dp_size)
        return [PromptInPlace(prompts[place], place, self._render(prompts[place])) for place in mine]

    def _render(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(render_prompt(self.parts.tokenizer, prompt.messages, self.config.data.thinking))

    def generate(self) -> list[Rollout]:
        """Sample a group of responses to every prompt of the step.

        With ``rollout.max_staleness`` = k, the next k steps' responses are asked for as well and are sampled
        while this step trains, so that no token is older than k optimizer steps when its turn comes.

        Raises:
            StopRequested: nothing of the run has changed since the last step.
        """
        rollout = self.config.rollout
        last = min(self.step + rollout.max_staleness, self.config.training.steps - 1)
        for step in range(self.step + len(self.ahead), last + 1):
            self.ahead.append(self._ask(step, self.prompts_of(step)))
        batch = self.ahead.popleft()
        rollouts = self._rollouts(batch)
        if self.dynamic.rounds:
            rollouts, self.discarded = self.dynamic.refill(rollouts, self._score, self._sample_again)
        self.parts.publisher.rest()
        self._heed()
        return rollouts

    def _rollouts(self, asked: SampledAhead) -> list[Rollout]:
        completions = self.parts.sampling.finish(asked.ticket, self.control)
        samples = self.config.rollout.samples_per_prompt
        return make_rollouts(asked.prompts, samples, completions, self.parts.tokenizer)

    def _sample_again(self, again: int, places: Sequence[int]) -> list[Rollout]:
        """Sample other prompts for places of this replica's share."""
        prompts = [item for item in self.prompts_of(self.step, again) if item.place in places]
        return self._rollouts(self._ask(self.step, prompts, again))

    def _heed(self) -> None:
        """Raise StopRequested where the run was asked to stop before its end."""
        if not self.over:
            self.control.heed()

    def _look_for_end(self) -> None:
        """End the run before its last step where its time is used up or it has collapsed. A collective."""
        budget, watch = self.config.training.budget_hours, self.config.report.watch
        if budget is None and not watch.stop_on:
            return
        spent = (self.training_seconds + self.recorder.training_seconds()) / 3600
        reason = self.recorder.ending()
        if budget is not None and spent >= budget:
            reason = f"training.budget_hours = {budget:g} is used up"
        self.ended_early = from_first_rank(reason)

    def _ask(self, step: int, prompts: list[PromptInPlace], again: int = 0) -> SampledAhead:
        rollout = self.config.rollout
        requests = sampling_requests(prompts, rollout.samples_per_prompt, self.config.seed, step, again)
        sampling = SamplingParams(rollout.temperature, rollout.top_p, rollout.max_response_tokens)
        return SampledAhead(prompts, self.parts.sampling.start(requests, sampling))

    def reward(self, rollouts: list[Rollout]) -> ScoredBatch:
        """Score the responses that have no score yet."""
        known = [rollout.score for rollout in rollouts if rollout.score is not None]
        return ScoredBatch(rollouts, known if len(known) == len(rollouts) else self._score(rollouts))

    def _score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return self.parts.scorer.score(rollouts)

    def assign(self, batch: ScoredBatch) -> Assignment:
        """Compute advantages and routes."""
        demonstrable_N = self.parts.teacher_prompts.demonstrable(batch.rollouts)
        return self.algorithm.assign(batch.for_algorithm(demonstrable_N))

    def deal(self, batch: ScoredBatch, assignment: Assignment) -> SharedWork:
        """Deal the passes over the step's rollouts out to the replicas, and send their tokens there."""
        return self.dealer.deal(
            ReplicaWork(
                sequences=batch.sequences,
                lessons=self.parts.teacher_prompts.sequences(batch, assignment, self.step),
                trained=((assignment.route_N != Route.DROPPED) | assignment.needs_teacher_N).tolist(),
                mini_batch=self.mini_batch // self.groups.dp_size * self.config.rollout.samples_per_prompt,
            )
        )

    def streams(
        self,
        batch: ScoredBatch,
        assignment: Assignment,
        old: Sequence[TokenScores],
        evidence: Mapping[int, TeacherEvidence],
    ) -> list[TokenStreams]:
        """Turn all of it into the per-token inputs of the loss."""
        behaviour = [
            BehaviourLogProbs(score.log_prob_R, rollout.log_prob_R)
            for score, rollout in zip(old, batch.rollouts, strict=True)
        ]
        return self.algorithm.streams(assignment, behaviour, evidence)

    def update(
        self, mini_batches: Sequence[Sequence[TrainingSample]], taught: TeacherPass
    ) -> list[UpdateResult | None]:
        """Make the step's optimizer steps, one per mini-batch."""
        self.unrecorded = True  # until its row is written, the step cannot be saved
        shown = samples_due(self.config.report, self.step + 1)
        return [self.trainer.update(samples, taught, keep_distilled=shown) for samples in mini_batches]

    def publish_weights(self) -> None:
        """Give the rollout engine the policy's weights; their version is the number of steps done."""
        self._publish(self.step + 1)

    def _publish(self, version: int) -> None:
        self.control.poll()  # engines may be another's as well, where it has taken the run over
        try:
            self.sync_metrics = self.parts.publisher.publish(version)
        except EngineError:
            self.control.heed()  # which may be why nobody waited for servers any longer
            raise

    def record(
        self,
        batch: ScoredBatch,
        assignment: Assignment,
        old: Sequence[TokenScores],
        evidence: Mapping[int, TeacherEvidence],
        streams: Sequence[TokenStreams],
        results: Sequence[UpdateResult | None],
        work: SharedWork,
    ) -> None:
        """Count the step and collect its metrics over all replicas.

        Raises:
            EngineError: trainer and engine disagree by more than ``rollout.max_logprob_difference``.
        """
        own = replica_facts(batch, assignment, old, evidence, self.step)
        facts = gather_over_replicas(own, self.groups)
        cap = self.config.algorithm.engine_importance_cap
        self.step += 1
        self.row = {
            "step": self.step,
            **rollout_metrics(facts, cap),
            **update_metrics(results),
            **balance_metrics(work),
            **self.parts.scorer.metrics(),
            **self.sync_metrics,
        }
        self._count_discarded()
        check_agreement(self.row, self.config.rollout.max_logprob_difference)
        self.lengths = length_counts(facts)
        self.samples = []
        if samples_due(self.config.report, self.step):
            distilled = work.distilled_home([result.distilled if result else () for result in results])
            story = Story(batch, assignment, evidence, distilled, self._demonstration(batch, assignment))
            self.samples = chosen_samples(self.config, self.step, story, self.parts.tokenizer)

    def _count_discarded(self) -> None:
        if self.discarded is None:
            return
        rollout = self.config.rollout
        self.row |= discarded_metrics(
            gather_over_replicas(self.discarded, self.groups),
            rollout.prompts_per_step,
            rollout.samples_per_prompt,
            self.row["reward/accuracy"],
        )
        self.row["tokens/total"] += self.row["sampling/discarded_tokens"]

    def _demonstration(self, batch: ScoredBatch, assignment: Assignment) -> Callable[[int], str | None]:
        """Return what tells the demonstration of a rollout of the step that was just counted."""
        step = self.step - 1  # as ``deal`` numbered it
        return lambda index: self.parts.teacher_prompts.demonstration(index, batch, assignment, step)

    def start(self) -> None:
        """Give the engine the policy, and measure held-out accuracy where that is not done yet.

        Engines load the model folder themselves, yet the first publication proves that the way works before
        any time is spent on sampling.

        Raises:
            StopRequested: the run is not to go on.
        """
        with self.phase("sync"):
            self._publish(self.step)
        evaluated = self.step == 0 and self._evaluate()
        seconds = self.recorder.phase_row()  # not of a step, and so of no budget
        if evaluated:
            self._write({**self.row, **self.sync_metrics, **seconds})
        self._look_for_end()
        self._heed()

    def _write(self, row: dict[str, float]) -> None:
        """Write a row on rank 0, unless the folder is no longer this run's."""
        self.control.poll()
        self.recorder.write(row, self.samples, self.lengths)
        self.unrecorded = False
        self.status.running(self.step)

    def _evaluate(self) -> bool:
        """Evaluate if this step asks for it."""
        last = self.step if self.over else self.config.training.steps
        due = self.parts.evaluator.is_due(self.step, last)
        if due:
            with self.phase("evaluate"):
                self.row |= self.parts.evaluator.evaluate(self.parts.evaluation_sampling, self.step)
        return due

    def finish_step(self) -> None:
        """Evaluate where due, write the step's row, and save where due.

        Raises:
            StopRequested: the step is done, and the run is not to go on.
        """
        self._look_for_end()
        self._evaluate()
        seconds = self.recorder.phase_row()
        self.training_seconds += seconds["time/step"]
        row = {**self.row, **seconds, "time/training_total": self.training_seconds}
        if "tokens/total" in row:
            row["tokens/per_second"] = row["tokens/total"] / max(seconds["time/step"], 1e-9)
        self._write(row)
        self._look_for_end()
        every = self.config.checkpoint.every
        if every and self.step % every == 0:
            self.save()
        self._heed()

    def finish(self) -> None:
        """Save the end of the run, export the policy in Hugging Face format, write the report."""
        config = self.config.checkpoint
        self._forget_ahead()
        if self.ended_early is not None:
            said = f"ended after step {self.step} of {self.config.training.steps}: {self.ended_early}"
            self.recorder.progress.message(said)
        if config.at_end and self.saved_step != self.step:
            self.save()
        if config.export_hf:
            self._export()
        self.control.poll()
        self.recorder.finish()
        self.status.finished(self.ended_early or "")

    def stop(self, request: StopRequested) -> None:
        """Save the last finished step, if that is not done, so that nothing of it is lost.

        A step that could not be finished, because no server took its weights, is trained again after the
        newest checkpoint.
        """
        self._forget_ahead()
        if self.saved_step != self.step and not self.unrecorded:
            self.save()
        self.recorder.progress.message(
            f"{request} after step {self.saved_step} of {self.config.training.steps}; continue with --resume"
        )
        self.status.stopped(str(request), self.saved_step)

    def _forget_ahead(self) -> None:
        while self.ahead:
            self.parts.sampling.cancel(self.ahead.pop().ticket)

    def _export(self) -> None:
        """Write the policy as a Hugging Face folder; one from an earlier end of this run is replaced."""
        target = Path(self.config.output_dir) / "model"
        source, owner = self.config.model.path, self.control.fence
        save_hf(self.trainer.policy, self.parts.arch, self.groups, target, source, owner=owner)

    def save(self) -> None:
        """Write a checkpoint from which ``--resume`` goes on as if never stopped."""
        with self.phase("checkpoint"):
            save_checkpoint(
                Path(self.config.output_dir) / "checkpoints",
                self.step,
                self.trainer,
                {"training_seconds": from_first_rank(self.training_seconds)},
                self.config.checkpoint.keep,
                self.control.fence,
            )
        self.saved_step = self.step
