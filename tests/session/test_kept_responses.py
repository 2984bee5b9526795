"""Responses that are kept: a step that is done again asks for none that it has."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from megatron_srpo.rollout.types import Completion, Request, SamplingParams, VersionSpan
from megatron_srpo.session.kept_responses import KeptResponses
from megatron_srpo.session.sampling import Ticket

PARAMS = SamplingParams(1.0, 1.0, 4)


@dataclass
class Sampler:
    """Answers with what the seed says, and counts."""

    asked: list[str] = field(default_factory=list)

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        self.asked += [request.id for request in requests]
        return Ticket(requests, params)

    def finish(self, ticket: Ticket, stop: object = None) -> list[Completion]:
        if ticket.completions is not None:
            return ticket.completions
        return [
            Completion(one.id, (one.seed, 7), (-0.1 / 3, -1e-30), "stop", (VersionSpan(2, 2),))
            for one in ticket.requests
        ]

    def cancel(self, ticket: Ticket) -> None:
        self.asked.append("cancelled")


def requests(step: int, seed: int = 5) -> list[Request]:
    return [Request(f"{step}/0/{sample}", (1, 2), seed + sample) for sample in range(2)]


def kept(folder: Path, sampler: Sampler, leader: bool = True, dp_rank: int = 0) -> KeptResponses:
    groups = SimpleNamespace(is_leader=leader, dp_rank=dp_rank)
    return KeptResponses(sampler, folder, groups)  # type: ignore[arg-type]


def sample(through: KeptResponses, asked: list[Request]) -> list[Completion]:
    return through.finish(through.start(asked, PARAMS))


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    first = sample(kept(tmp_path, Sampler()), requests(1))
    sampler = Sampler()
    again = kept(tmp_path, sampler)
    assert sample(again, requests(1)) == first
    assert sampler.asked == []
    sample(again, requests(2))
    assert sampler.asked == ["2/0/0", "2/0/1"]
    sampler = Sampler()
    third = kept(tmp_path, sampler)
    assert sample(third, requests(2)) and sample(third, requests(1))
    assert sampler.asked == []


def test_another_seed_is_another_request(tmp_path: Path) -> None:
    sample(kept(tmp_path, Sampler()), requests(1))
    sampler = Sampler()
    sample(kept(tmp_path, sampler), requests(1, seed=50))
    assert sampler.asked == ["1/0/0", "1/0/1"]


def test_a_torn_line_is_sampled_again(tmp_path: Path) -> None:
    through = kept(tmp_path, Sampler())
    sample(through, requests(1))
    sample(through, requests(2))
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    sampler = Sampler()
    again = kept(tmp_path, sampler)
    sample(again, requests(1))
    sample(again, requests(2))
    assert sampler.asked == ["2/0/0", "2/0/1"]


def test_other_ranks_read_and_do_not_write(tmp_path: Path) -> None:
    sample(kept(tmp_path, Sampler(), dp_rank=1), requests(1))
    sampler = Sampler()
    follower = kept(tmp_path, sampler, leader=False)
    sample(follower, requests(1))
    assert sampler.asked == []
    sample(follower, requests(2))
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["replica_00001.jsonl"]
