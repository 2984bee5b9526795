"""Watches servers that were started elsewhere, from any rank that sends requests there."""

from collections.abc import Sequence

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.registry import Registry
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch


class Lookout:
    """Asks the servers themselves and, where they are registered, the registry.

    The registry often knows first: a machine without power answers nothing, not even that a port is closed.
    Any thread may call it. Watches from the beginning to :meth:`stop`.

    Args:
        hang_timeout_s: silence after which a server counts as frozen.
        registry: where the servers' entries are; None if there is none.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], hang_timeout_s: float, registry: Registry | None = None
    ) -> None:
        self._registry = registry
        self._watches = tuple(ServerWatch(endpoint, None, hang_timeout_s) for endpoint in endpoints)
        for watch in self._watches:
            watch.start()

    def known(self) -> dict[str, Condition]:
        """Say of each server, by URL, what is known of it."""
        found = {watch.endpoint.url: watch.condition for watch in self._watches}
        if self._registry is not None and found:
            present = {entry.incarnation for entry in self._registry.serving().values()}
            gone = [watch.endpoint for watch in self._watches if watch.endpoint.incarnation not in present]
            found |= {endpoint.url: Condition.DEAD for endpoint in gone}
        return found

    def note_progress(self, url: str) -> None:
        """Take note that a request to ``url`` finished."""
        for watch in self._watches:
            if watch.endpoint.url == url:
                watch.note_progress()

    def stop(self) -> None:
        """Stop watching."""
        for watch in self._watches:
            watch.stop()
