"""Responses that are kept as they come: a step that is done again after a kill samples none twice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_srpo.errors import DataError
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.report.records import RecordFile, read_records
from megatron_srpo.rollout.types import Completion, Request, SamplingParams, VersionSpan
from megatron_srpo.session.sampling import Requests, Sampling, Ticket

#: Identifies a request together with its seed, which depends on its place in the run.
_Key = tuple[str, int]


class KeptResponses:
    """Samples through another :class:`Sampling`, and keeps what comes back; answers from what was kept.

    A step's trajectory is decided by what went before, so a request of the same name and seed has the same
    prompt and weights. Each replica's leader writes a file of its own; all are read when the run begins, so
    that a run may be resumed with another number of replicas.
    """

    def __init__(self, sampling: Sampling, folder: Path, groups: ProcessGroups) -> None:
        self._sampling = sampling
        self._known = _read(folder)
        self._file: RecordFile | None = None
        self._written = 0
        if groups.is_leader:
            self._file = RecordFile(folder / f"replica_{groups.dp_rank:05d}.jsonl")
            self._written = (self._file.last_step or 0) + 1

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        """Hand requests in, unless all their answers were kept."""
        known = [self._known.get((request.id, request.seed)) for request in requests]
        found = [completion for completion in known if completion is not None]
        if len(found) == len(requests):
            return Ticket(requests, params, completions=found)
        return self._sampling.start(requests, params)

    def finish(self, ticket: Ticket, stop: Requests | None = None) -> list[Completion]:
        """Return the answers, in order, and keep new ones; see :meth:`ServerSampling.finish`."""
        new = ticket.completions is None
        completions = self._sampling.finish(ticket, stop)
        if new and self._file is not None and completions:
            self._file.append([_record(self._written, ticket.requests, completions)])
            self._written += 1
        return completions

    def cancel(self, ticket: Ticket) -> None:
        """Stop sampling for these requests."""
        self._sampling.cancel(ticket)


def _record(number: int, requests: Sequence[Request], completions: Sequence[Completion]) -> dict[str, Any]:
    """Write one line for all of a ticket: it is there whole or not at all."""
    pairs = zip(requests, completions, strict=True)
    return {"step": number, "responses": [{"seed": one.seed, **asdict(other)} for one, other in pairs]}


def _read(folder: Path) -> Mapping[_Key, Completion]:
    return {
        (kept["request_id"], kept["seed"]): _completion(kept, path)
        for path in sorted(folder.glob("replica_*.jsonl"))
        for record in read_records(path)
        for kept in record["responses"]
    }


def _completion(kept: Mapping[str, Any], path: Path) -> Completion:
    try:
        return Completion(
            kept["request_id"],
            tuple(kept["tokens"]),
            tuple(kept["log_probs"]),
            kept["finish_reason"],
            tuple(VersionSpan(**span) for span in kept["version_spans"]),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} was written by another version ({error!r}); remove it") from error
