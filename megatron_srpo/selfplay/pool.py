"""The pool: questions that the trained Challenger writes, judged by the frozen Solver."""

from collections.abc import Callable, Sequence
from typing import Any

from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.data.chat import decode_response, render_prompt
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.types import Request, SamplingParams
from megatron_srpo.selfplay.blocks import Blocks
from megatron_srpo.selfplay.questions import Written, challenger_messages, parse_question
from megatron_srpo.selfplay.votes import Verdict, VoteBook, right_labels
from megatron_srpo.session.frozen import FrozenModel

Truth = Callable[[str], str | None]


def write_pool(
    config: SelfPlayConfig,
    challenger: FrozenModel,
    blocks: Blocks,
    iteration: int,
    check: Callable[[], None],
    on_progress: Callable[[int, int], None],
) -> None:
    """Sample the pool's missing questions, block by block; used on one rank.

    Args:
        check: called between blocks; may raise to interrupt.
        on_progress: called with (questions written, questions).
    """
    thinking, rollout = config.challenger.data.thinking, config.challenger.rollout
    prompt = tuple(render_prompt(challenger.tokenizer, challenger_messages(config.prompt), thinking))
    params = SamplingParams(rollout.temperature, rollout.top_p, rollout.max_response_tokens)
    while (done := len(blocks.items)) < config.pool.questions:
        check()
        places = range(done, min(done + config.pool.block, config.pool.questions))
        requests = [
            Request(f"pool/{place}", prompt, request_seed(config.seed, "pool", iteration, place, 0))
            for place in places
        ]
        completions = challenger.sample(requests, params)
        texts = [decode_response(challenger.tokenizer, completion.tokens) for completion in completions]
        blocks.append([{"text": text} for text in texts])
        on_progress(done + len(texts), config.pool.questions)


def judge_pool(
    config: SelfPlayConfig,
    texts: Sequence[str],
    votes: VoteBook,
    rewards: RewardPool,
    truth: Truth | None,
    iteration: int,
) -> list[dict[str, Any]]:
    """Let the Solver vote on the pool; return a row per question (docs/self_play.md)."""
    written = [parse_question(text, config.prompt) for text in texts]
    verdicts = votes.verdicts_where_written(written)
    rows = [
        _row(f"{iteration}/{place}", one, verdict, config, truth)
        for place, (one, verdict) in enumerate(zip(written, verdicts, strict=True))
    ]
    known = [row for row in rows if row["truth"] is not None and row["label"] is not None]
    right = right_labels([row["truth"] for row in known], [row["label"] for row in known], rewards)
    for row, is_right in zip(known, right, strict=True):
        row["label_correct"] = is_right
    return rows


def _row(
    name: str,
    written: Written | None,
    verdict: Verdict | None,
    config: SelfPlayConfig,
    truth: Truth | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": name,
        "question": None,
        "own_answer": None,
        "share": None,
        "label": None,
        "votes": [],
        "valid": False,
        "truth": None,
        "label_correct": None,
    }
    if written is None or verdict is None:
        return row
    valid = verdict.label is not None and config.votes.low <= verdict.share <= config.votes.high
    return row | {
        "question": written.question,
        "own_answer": written.own_answer,
        "share": verdict.share,
        "label": verdict.label,
        "votes": [list(vote) for vote in verdict.votes],
        "valid": valid,
        "truth": truth(written.question) if truth is not None else None,
    }
