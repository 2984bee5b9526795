"""Signs of life to nvidia-resiliency-ext's ``ft_launcher``, which ends and restarts ranks that hang.

Without that launcher nothing is sent and the package is not needed.
"""

from typing import Protocol

from megatron_srpo import platform
from megatron_srpo.errors import LaunchError


class Heartbeat(Protocol):
    """Told whenever this rank has finished a phase of its work."""

    def beat(self) -> None:
        """Say that the rank is alive."""

    def close(self) -> None:
        """Nothing more will be said: the silence from now on is no fault."""


class _Silent:
    def beat(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Monitored:
    def __init__(self) -> None:
        try:
            from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient
        except ImportError as error:
            raise LaunchError(
                f"ft_launcher started this rank, but nvidia-resiliency-ext cannot be imported ({error}); "
                "install it in the roles' environment"
            ) from error
        self._client = RankMonitorClient()
        self._client.init_workload_monitoring()

    def beat(self) -> None:
        self._client.send_heartbeat()

    def close(self) -> None:
        self._client.shutdown_workload_monitoring()


def heartbeat() -> Heartbeat:
    """Connect to the launcher's monitor of this rank, where there is one."""
    return _Monitored() if platform.is_monitored() else _Silent()
