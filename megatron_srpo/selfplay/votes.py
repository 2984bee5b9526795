"""The frozen Solver's votes on questions: how sure it is, and the label that most of its answers agree on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.data.chat import decode_response, render_prompt
from megatron_srpo.data.types import Prompt
from megatron_srpo.evaluation.voting import Voter, cast_votes
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.types import Request, SamplingParams
from megatron_srpo.selfplay.blocks import Blocks
from megatron_srpo.selfplay.questions import SOLVER_TASK, Written, solver_prompt
from megatron_srpo.selfplay.skill.cache import text_key
from megatron_srpo.session.frozen import FrozenModel

#: Least score at which math-verify holds two answers for the same.
_AGREED = 0.5


@dataclass(frozen=True)
class Verdict:
    """What the Solver says to one question.

    Attributes:
        votes: (answer, count) of every answer that means something else, most common first.
        asked: how many answers were sampled; some may have come to no answer.
    """

    votes: tuple[tuple[str, int], ...]
    asked: int

    @property
    def share(self) -> float:
        """Share of the most common answer among all that were sampled; 0 where there is none."""
        return self.votes[0][1] / self.asked if self.votes else 0.0

    @property
    def label(self) -> str | None:
        """The most common answer."""
        return self.votes[0][0] if self.votes else None


class VoteBook:
    """Verdicts of one Solver, each computed once and kept on disk; used on one rank.

    Equal questions have one verdict. What is sampled depends on the question and the seed, not on when it is
    asked or beside what (up to rounding, see :class:`~megatron_srpo.rollout.local.LocalEngine`).

    Args:
        solver: the frozen Solver.
        rewards: decides whether two answers mean the same.
        path: of the file that keeps the verdicts.
        iteration: part of the seeds.
        check: called between blocks; may raise to interrupt.
        on_progress: called with (questions judged, questions) of the running call.
    """

    def __init__(
        self,
        config: SelfPlayConfig,
        solver: FrozenModel,
        rewards: RewardPool,
        path: Path,
        iteration: int,
        check: Callable[[], None],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._config, self._solver, self._rewards = config, solver, rewards
        self._iteration, self._check, self._on_progress = iteration, check, on_progress
        self._blocks = Blocks(path)
        self._known = {item["question"]: _verdict(item) for item in self._blocks.items}
        self.computed = 0

    def verdicts(self, questions: Sequence[str]) -> list[Verdict]:
        """Return a verdict per question, in order.

        Raises:
            EngineError: the Solver's engine fails; what was judged stays saved.
        """
        missing = [question for question in dict.fromkeys(questions) if question not in self._known]
        done = 0
        for block in self._cut(missing):
            self._check()
            self._judge(block)
            done += len(block)
            self._on_progress(done, len(missing))
        return [self._known[question] for question in questions]

    def verdicts_where_written(self, written: Sequence[Written | None]) -> list[Verdict | None]:
        """Return a verdict per well-formed question, and None in the place of a malformed one."""
        verdicts = iter(self.verdicts([one.question for one in written if one is not None]))
        return [None if one is None else next(verdicts) for one in written]

    def _cut(self, questions: Sequence[str]) -> Iterator[Sequence[str]]:
        size = max(1, self._config.pool.block // self._config.votes.samples)
        return (questions[start : start + size] for start in range(0, len(questions), size))

    def _judge(self, questions: Sequence[str]) -> None:
        asked = [solver_prompt(question, self._config.prompt) for question in questions]
        prompts = [(prompt, tokens) for prompt in asked if (tokens := self._render(prompt)) is not None]
        samples = self._config.votes.samples
        requests = [
            self._request(prompt, tokens, sample) for prompt, tokens in prompts for sample in range(samples)
        ]
        completions = self._solver.sample(requests, self._params())
        voters = [
            Voter(prompt, decode_response(self._solver.tokenizer, completion.tokens), correct=False)
            for (prompt, _), start in zip(prompts, range(0, len(requests), samples), strict=True)
            for completion in completions[start : start + samples]
        ]
        counted: dict[str, Counter[str]] = {question: Counter() for question in questions}
        for voter, vote in zip(voters, cast_votes(voters, self._score, _AGREED, blind=True), strict=True):
            if vote is not None:
                counted[voter.prompt.id][vote] += 1
        items = [
            {"question": question, "votes": counts.most_common(), "asked": samples}
            for question, counts in counted.items()
        ]
        self._blocks.append(items)
        self._known |= {question: _verdict(item) for question, item in zip(questions, items, strict=True)}
        self.computed += len(items)

    def _render(self, prompt: Prompt) -> tuple[int, ...] | None:
        """Return the prompt's tokens; None where it is too long to be asked, and so gets no votes."""
        data = self._config.solver.data
        tokens = render_prompt(self._solver.tokenizer, prompt.messages, data.thinking)
        return tuple(tokens) if len(tokens) <= data.max_prompt_tokens else None

    def _request(self, prompt: Prompt, tokens: tuple[int, ...], sample: int) -> Request:
        digest = text_key(prompt.id)
        seed = request_seed(self._config.seed, f"votes/{digest}", self._iteration, 0, sample)
        return Request(f"{digest}/{sample}", tokens, seed)

    def _params(self) -> SamplingParams:
        votes = self._config.votes
        most = votes.max_response_tokens or self._config.solver.rollout.max_response_tokens
        return SamplingParams(votes.temperature, votes.top_p, most)

    def _score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Sequence:
        return self._rewards.score(list(zip(prompts, answers, strict=True)))


def _verdict(item: dict) -> Verdict:
    return Verdict(tuple((str(answer), int(count)) for answer, count in item["votes"]), int(item["asked"]))


def right_labels(truths: Sequence[str], labels: Sequence[str], rewards: RewardPool) -> list[bool]:
    """Say which labels mean the same as the true answers."""
    items = [
        (Prompt(str(place), ({"role": "user", "content": ""},), truth, SOLVER_TASK), f"\\boxed{{{label}}}")
        for place, (truth, label) in enumerate(zip(truths, labels, strict=True))
    ]
    return [score.value >= _AGREED for score in rewards.score(items)]
