"""The rollout engine that the config names, tied to the trainer or alone."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rollout.collect import from_first_patiently
from megatron_srpo.rollout.engine import RolloutEngine, WeightPublisher
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.publisher import LocalPublisher
from megatron_srpo.rollout.sglang.endpoint import Endpoint, check_reach
from megatron_srpo.rollout.sglang.engine import SamplerSettings, SGLangEngine
from megatron_srpo.rollout.sglang.fleet import Fleet
from megatron_srpo.rollout.sglang.owners import all_have_a_copy_near
from megatron_srpo.rollout.sglang.publisher import SGLangPublisher
from megatron_srpo.rollout.sglang.registered import RegisteredFleet
from megatron_srpo.rollout.sglang.registry import Registry
from megatron_srpo.rollout.stop_tokens import stop_tokens
from megatron_srpo.session.models import DTYPES
from megatron_srpo.session.sampling import LocalSampling, Sampling, ServerSampling
from megatron_srpo.training.exchange import everywhere
from megatron_srpo.training.trainer import Trainer
from megatron_srpo.weights.agreement import together
from megatron_srpo.weights.sync import SyncSettings, WeightSync
from megatron_srpo.weights.transports.base import Transport
from megatron_srpo.weights.transports.collective import CollectiveTransport
from megatron_srpo.weights.transports.disk import DiskTransport
from megatron_srpo.weights.transports.tensor import TensorTransport


@dataclass(frozen=True)
class EngineLink:
    """What ties a trainer to its engine: responses one way, weights the other."""

    sampling: Sampling
    publisher: WeightPublisher


@contextmanager
def link_engine(
    config: RunConfig,
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    trainer: Trainer,
    tokenizer: Any,
    say: Callable[[str], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EngineLink]:
    """Start the engine for training; end it with the block. Collective over the job.

    Args:
        say: shows a line of progress (on rank 0).
        should_stop: ends waiting for registered servers (on rank 0, in a thread of its own).

    Raises:
        EngineError: it cannot be started or reached.
    """
    if config.rollout.engine == "local":
        engine = _local_engine(config, tokenizer)
        publisher = LocalPublisher(engine, trainer.policy, arch, groups)
        link = EngineLink(LocalSampling(engine, groups), publisher)
    else:
        link = _link_sglang(config, arch, groups, trainer, tokenizer, say, should_stop)
    try:
        yield link
    finally:
        link.publisher.close()


def _local_engine(config: RunConfig, tokenizer: Any) -> LocalEngine:
    return LocalEngine(
        config.model.path,
        DTYPES[config.rollout.local_dtype],
        platform.device(),
        config.rollout.local_batch_size,
        vocab_limit=len(tokenizer),
        stop_tokens=stop_tokens(config.model.path, tokenizer),
    )


def _link_sglang(
    config: RunConfig,
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    trainer: Trainer,
    tokenizer: Any,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> EngineLink:
    chosen = config.rollout.sglang
    hosts = everywhere(socket.gethostname())
    check_reach(hosts, _listening(chosen))
    # Made on all ranks, before one of them alone could meet a folder that cannot be made.
    registry = together(lambda: Registry(chosen.registry) if chosen.registry else None)
    fleet = _fleet(config, say, should_stop) if dist.get_rank() == 0 else None
    with ExitStack() as on_failure:
        if fleet is not None:
            on_failure.callback(fleet.close)
        endpoints, generation = _addresses(fleet)
        check_reach(hosts, [endpoint.url for endpoint in endpoints])
        engine = None
        if groups.is_leader:
            engine = _sglang_engine(config, arch.vocab_size, tokenizer, endpoints, generation, fleet)
            on_failure.callback(engine.close)
        transport = _transport(config, groups, endpoints)
        sync = WeightSync(
            trainer.policy,
            arch,
            groups,
            transport,
            chosen.tensor_parallel,
            _sync_settings(config),
            chosen.expert_parallel,
        )
        publisher = SGLangPublisher(
            fleet,
            engine,
            sync,
            groups,
            endpoints,
            hang_timeout_s=chosen.hang_timeout_s,
            attempts=config.rollout.sync.attempts,
            colocated=config.rollout.placement == "colocated",
            registry=registry,
        )
        on_failure.pop_all()
    return EngineLink(ServerSampling(engine, publisher, groups), publisher)


def _listening(chosen: SGLangConfig) -> tuple[str, ...]:
    """Return the addresses that are known before anything is started."""
    if chosen.registry:
        return (chosen.host,) if chosen.router == "on" else ()
    return chosen.urls or (chosen.host,)


def _fleet(
    config: RunConfig, say: Callable[[str], None], should_stop: Callable[[], bool] = lambda: False
) -> Fleet | RegisteredFleet:
    logs = Path(config.output_dir) / "engine"
    if config.rollout.sglang.registry:
        return RegisteredFleet(config.rollout.sglang, logs, on_progress=say, should_stop=should_stop)
    return Fleet(config.rollout.sglang, config.model.path, config.model.dtype, logs, on_progress=say)


def _addresses(fleet: Fleet | RegisteredFleet | None) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """Start the servers on rank 0 and tell all ranks where they are, and where requests go."""

    def start(started: Fleet | RegisteredFleet) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]] | str:
        try:
            started.start()
        except EngineError as error:
            return str(error)
        return started.endpoints, started.generation

    found = from_first_patiently(None if fleet is None else partial(start, fleet))
    if isinstance(found, str):
        raise EngineError(found)
    return found


def _sglang_engine(
    config: RunConfig,
    vocab_size: int,
    tokenizer: Any,
    endpoints: Sequence[Endpoint],
    generation: Sequence[Endpoint],
    fleet: Fleet | RegisteredFleet | None,
) -> SGLangEngine:
    chosen = config.rollout.sglang
    return SGLangEngine(
        endpoints,
        generation,
        vocab_size=vocab_size,
        vocab_limit=min(len(tokenizer), vocab_size),
        stop_tokens=stop_tokens(config.model.path, tokenizer),
        settings=SamplerSettings(
            chosen.max_concurrency, chosen.request_timeout_s, chosen.straggler_timeout_s
        ),
        on_finished=None if fleet is None else fleet.note_progress,
    )


def _transport(config: RunConfig, groups: ProcessGroups, endpoints: Sequence[Endpoint]) -> Transport:
    sync, chosen = config.rollout.sync, config.rollout.sglang
    name = sync.transport
    if name == "auto":
        name = _nearest_transport(config, groups, endpoints)
    if name == "disk":
        folder = sync.folder or str(Path(config.output_dir) / "engine" / "weights")
        return DiskTransport(groups, folder, config.model.path)
    if name == "collective":
        return CollectiveTransport(groups, chosen.tensor_parallel, sync.address, sync.timeout_s)
    whole = bool(chosen.quantization)
    return TensorTransport(groups, chosen.tensor_parallel, whole, chosen.expert_parallel)


def _nearest_transport(config: RunConfig, groups: ProcessGroups, endpoints: Sequence[Endpoint]) -> str:
    """Choose the way that reaches all servers; the same on all ranks."""
    colocated = config.rollout.placement == "colocated"
    near = all_have_a_copy_near(endpoints, groups)
    # Registered servers on devices of their own may be elsewhere when they come back.
    if near and (colocated or not config.rollout.sglang.registry):
        return "tensor"
    # A rank and a server on one device cannot be in one group of NCCL.
    return "disk" if colocated else "collective"


def _sync_settings(config: RunConfig) -> SyncSettings:
    sync, chosen = config.rollout.sync, config.rollout.sglang
    return SyncSettings(
        dtype=DTYPES[config.model.dtype if chosen.dtype == "auto" else chosen.dtype],
        bucket_bytes=sync.bucket_mib << 20,
        timeout_s=sync.timeout_s,
        # Quantised weights are not those that were sent: their checksums say nothing.
        verify_every=0 if chosen.quantization else sync.verify_every,
        pause_mode="abort" if sync.in_flight == "abort" else "retract",
    )


@contextmanager
def engine_alone(
    config: RunConfig, vocab_size: int, tokenizer: Any, say: Callable[[str], None]
) -> Iterator[RolloutEngine]:
    """Start the engine with the weights of the model folder, in a process without a trainer.

    The model need not be one that can be trained here, only one that the engine knows.

    Args:
        vocab_size: of the model; its tokenizer may know fewer ids.

    Raises:
        EngineError: it cannot be started or reached.
    """
    if config.rollout.engine == "local":
        local = _local_engine(config, tokenizer)
        yield local
        local.close()
        return
    with _fleet(config, say) as fleet:
        engine = _sglang_engine(config, vocab_size, tokenizer, fleet.endpoints, fleet.generation, fleet)
        try:
            yield engine
        finally:
            engine.close()
