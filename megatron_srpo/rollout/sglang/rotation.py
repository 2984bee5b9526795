"""Which servers take requests: who is in, who is out, who failed how often. Used on the client's loop."""

import asyncio
from collections.abc import Sequence
from itertools import count

from megatron_srpo.rollout.engine import EngineLost
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import Retries


class Seat:
    """One endpoint that requests can be sent to.

    Attributes:
        endpoint: where it listens.
        slots: bounds the requests in flight there.
        gone: resolved when the endpoint is taken out of rotation; calls in flight then stop waiting.
        in_flight: when its unanswered requests were sent, in ticks of :meth:`Rotation.tick`.
        strikes: failures since the last success.
    """

    def __init__(self, endpoint: Endpoint, max_concurrency: int) -> None:
        self.endpoint = endpoint
        self.slots = asyncio.Semaphore(max_concurrency)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_flight: set[int] = set()
        self.strikes = 0
        self.first_struck = self.last_struck = 0
        self.last_error = "none"

    @property
    def excluded(self) -> bool:
        """Whether it was taken out of rotation."""
        return self.gone.done()

    def may_answer(self, strikes: int) -> bool:
        """Whether it is in rotation, and has fewer strikes or still works on what came before the first one.

        Only the latter tells a server that is gone from one that refuses some request, or more work, while
        answers to others are on their way.
        """
        return not self.excluded and (
            self.strikes < strikes or any(tick < self.first_struck for tick in self.in_flight)
        )


class Rotation:
    """The endpoints of one engine.

    An endpoint leaves the choice when it is excluded, or after ``retries.attempts`` strikes: failures without
    a success between them. Requests that fail together count as one strike, because only a request sent after
    the last strike can make a new one; so a server that dies under 256 requests is asked again, three times,
    before it is given up. A server that still works on older requests is asked further. A success or
    :meth:`include` clears its strikes.
    """

    def __init__(self, endpoints: Sequence[Endpoint], max_concurrency: int, retries: Retries) -> None:
        self._max_concurrency = max_concurrency
        self._seats = [Seat(endpoint, max_concurrency) for endpoint in endpoints]
        self._retries = retries
        self._clock = count(1)

    @property
    def patience(self) -> int:
        """Failures in a row after which a request cannot blame its servers any more: they have all left."""
        return self._retries.attempts * (len(self._seats) + 1)

    @property
    def live(self) -> list[Seat]:
        """Endpoints that may be asked."""
        return [seat for seat in self._seats if seat.may_answer(self._retries.attempts)]

    def forgive(self) -> None:
        """Clear all strikes: a new call tries everyone that is in rotation."""
        for seat in self._seats:
            seat.strikes = 0

    def choose(self, home: Seat | None) -> Seat:
        """Return ``home`` while it does well, else whoever failed least, then has least to do.

        Raises:
            EngineLost: nobody is left; the message holds everyone's last failure.
        """
        live = self.live
        if not live:
            why = "; ".join(f"{seat.endpoint.url}: {seat.last_error}" for seat in self._seats)
            raise EngineLost(f"no SGLang server can take requests any more; last failure of {why}")
        return min(live, key=lambda seat: (seat.strikes, seat is not home, len(seat.in_flight)))

    async def wait(self, seat: Seat) -> None:
        """Pause before asking an endpoint that failed; longer if it fails again meanwhile.

        Otherwise requests that wait side by side would, waking one after the other, use up all its tries
        within one pause.
        """
        waited_for = 0
        while seat.strikes > waited_for and not seat.excluded:
            waited_for = seat.strikes
            await asyncio.wait([seat.gone], timeout=self._retries.delay(waited_for))

    def tick(self) -> int:
        """Return the time, in ticks."""
        return next(self._clock)

    def succeeded(self, seat: Seat) -> None:
        """Note an answer."""
        seat.strikes = 0

    def failed(self, seat: Seat, sent: int, error: str) -> None:
        """Note a failure of a request that was sent at tick ``sent``."""
        seat.last_error = error
        if sent >= seat.last_struck:
            seat.last_struck = self.tick()
            seat.first_struck = seat.first_struck if seat.strikes else seat.last_struck
            seat.strikes += 1

    def exclude(self, url: str) -> None:
        """Take an endpoint out: nothing is sent there any more, what is in flight moves elsewhere."""
        for seat in self._seats:
            if seat.endpoint.url == url and not seat.excluded:
                seat.last_error = "taken out of rotation"
                seat.gone.set_result(None)

    def bounce(self, url: str) -> None:
        """Send what is in flight there once more: an endpoint that passes requests on may have lost some."""
        self.exclude(url)
        self.include(url)

    def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """Have these and no others in rotation, all failures forgotten. Who stays keeps its requests."""
        before = {seat.endpoint.url: seat for seat in self._seats}
        for url in before.keys() - {endpoint.url for endpoint in endpoints}:
            self.exclude(url)
        kept = [(endpoint, before.get(endpoint.url)) for endpoint in endpoints]
        self._seats = [seat or Seat(endpoint, self._max_concurrency) for endpoint, seat in kept]
        for seat, endpoint in zip(self._seats, endpoints, strict=True):
            seat.endpoint = endpoint  # perhaps another start of a server on the same port
            self.include(endpoint.url)

    def include(self, url: str) -> None:
        """Put an endpoint back, its failures forgotten."""
        for seat in self._seats:
            if seat.endpoint.url == url:
                seat.strikes = 0
                if seat.excluded:
                    seat.gone = asyncio.get_running_loop().create_future()
