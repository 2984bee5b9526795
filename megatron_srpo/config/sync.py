"""Configuration of weight synchronisation: how the policy's weights reach the rollout engine."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option


@dataclass(frozen=True, kw_only=True)
class SyncConfig(Config):
    """From the trainer's shards to the servers of the rollout engine. The local engine needs none of it."""

    transport: str = option(
        "auto",
        "tensor: shared memory or CUDA IPC, same host; collective: NCCL or gloo, any hosts; disk: a shared "
        "folder; auto: tensor when every server listens on this machine, else collective.",
        choices=("auto", "tensor", "collective", "disk"),
    )
    bucket_mib: int = option(512, "Most MiB of one bucket; a rank that assembles holds two.", minimum=1)
    timeout_s: float = option(300.0, "Longest wait for a rank or a server in one step.", minimum=1.0)
    verify_every: int = option(
        50, "Compare checksums at the first synchronisation and then at every so many; 0: never.", minimum=0
    )
    attempts: int = option(3, "Attempts of one synchronisation, servers restarted in between.", minimum=1)
    in_flight: str = option(
        "retract",
        "Requests in flight at a synchronisation. retract: go on with the new weights; abort: end there.",
        choices=("retract", "abort"),
    )
    folder: str | None = option(None, "Folder of the disk transport; null: engine/weights in the run folder.")
    address: str = option("", "Address at which servers reach the trainer (collective); empty: found.")
