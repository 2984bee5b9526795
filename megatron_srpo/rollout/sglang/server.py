"""The control interface of one SGLang server: pausing, weights, caches, memory, versions.

Every method returns at once with a future. None of these calls is repeated unless it only reads: a weight
update that seems lost may have been applied.
"""

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeVar

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import EventLoopThread, RequestRefused, Retries, ServerFailure
from megatron_srpo.rollout.sglang.replies import parse_version

PauseMode = Literal["abort", "retract", "in_place"]

_T = TypeVar("_T")

_READING_TIMEOUT_S = 30.0
_READING = Retries(attempts=3)
_FLUSH_POLL_S = 0.05


class SGLangServer:
    """One server that holds weights.

    The futures fail with EngineError, whose message names the server's url and the step.

    Attributes:
        endpoint: where it listens.
    """

    def __init__(self, endpoint: Endpoint, loop: EventLoopThread, timeout_s: float = 600.0) -> None:
        """Take the loop that the calls run on, and the longest wait for one of them."""
        self.endpoint = endpoint
        self._loop, self._timeout_s = loop, timeout_s
        self._gone = asyncio.Event()

    @property
    def name(self) -> str:
        """Its url."""
        return self.endpoint.url

    def give_up(self) -> None:
        """Fail what is waited for, and later calls until :meth:`take_back`: a machine without power never
        answers."""
        self._loop.call(self._gone.set)

    def take_back(self) -> None:
        """Call it again."""
        self._loop.call(self._gone.clear)

    def pause(self, mode: PauseMode) -> concurrent.futures.Future[None]:
        """Stop sampling; requests that come now wait until :meth:`resume`.

        Args:
            mode: "abort" ends running requests, which return what they have (up to a second);
                "retract" keeps them without their key-value cache, which is computed again; "in_place" keeps
                the cache too, made by the old weights (the cache cannot be flushed then).
        """
        return self._do("pause", "/pause_generation", {"mode": mode})

    def resume(self) -> concurrent.futures.Future[None]:
        """Go on sampling after :meth:`pause`."""
        return self._do("resume", "/continue_generation", {})

    def flush_cache(self, timeout_s: float = 60.0) -> concurrent.futures.Future[None]:
        """Empty the prefix cache, which holds keys and values of the old weights.

        The scheduler refuses while it counts requests as running, which it does for a moment after their
        answers have arrived; so this asks until it agrees.
        """
        return self._submit(self._flush(timeout_s))

    def begin_update(self) -> concurrent.futures.Future[None]:
        """Open a weight update. Servers before 0.5.16 have no such call (404) and need none."""
        return self._submit(self._session("begin update", "/begin_weight_update"))

    def end_update(self) -> concurrent.futures.Future[None]:
        """Close a weight update: quantized weights become usable. A 404 is as in :meth:`begin_update`."""
        return self._submit(self._session("end update", "/end_weight_update"))

    def load_from_disk(self, folder: str, version: int) -> concurrent.futures.Future[None]:
        """Load a Hugging Face folder that the server can read."""
        body = {"model_path": folder, "weight_version": str(version), "flush_cache": False}
        return self._do("load from disk", "/update_weights_from_disk", body)

    def load_from_tensors(
        self, payloads: Sequence[str], load_format: str | None, version: int | None
    ) -> concurrent.futures.Future[None]:
        """Load tensors, or handles of shared memory, from the call itself; between begin and end update.

        Args:
            payloads: one per tensor-parallel rank, base64 of what SGLang deserialises.
            load_format: None for named tensors, or SGLang's name of another form ("flattened_bucket").
            version: given with the last bucket; None leaves the server's.
        """
        body = {"serialized_named_tensors": list(payloads), "flush_cache": False}
        return self._do(
            "load from tensors", "/update_weights_from_tensor", {**body, **_named(load_format, version)}
        )

    def join_group(
        self, address: str, port: int, rank_offset: int, world_size: int, group: str, backend: str
    ) -> concurrent.futures.Future[None]:
        """Have the server's ranks join a process group, ``rank_offset`` being the first one's rank.

        The future resolves when all ``world_size`` ranks have come: the caller must join meanwhile.
        """
        return self._do(
            "join group",
            "/init_weights_update_group",
            {
                "master_address": address,
                "master_port": port,
                "rank_offset": rank_offset,
                "world_size": world_size,
                "group_name": group,
                "backend": backend,
            },
        )

    def load_from_group(
        self,
        names: Sequence[str],
        dtypes: Sequence[str],
        shapes: Sequence[Sequence[int]],
        group: str,
        version: int | None,
        load_format: str | None = None,
    ) -> concurrent.futures.Future[None]:
        """Receive tensors that rank 0 of the group broadcasts meanwhile; between begin and end of an update.

        Args:
            names: Hugging Face names.
            dtypes: torch names without the prefix, e.g. "bfloat16".
            shapes: of the full tensors.
            group: name given to :meth:`join_group`.
            version, load_format: as in :meth:`load_from_tensors`.
        """
        body = {
            "names": list(names),
            "dtypes": list(dtypes),
            "shapes": [list(shape) for shape in shapes],
            "group_name": group,
            "flush_cache": False,
        }
        step = f"load {len(names)} tensors from group {group}"
        return self._do(step, "/update_weights_from_distributed", {**body, **_named(load_format, version)})

    def leave_group(self, group: str) -> concurrent.futures.Future[None]:
        """Leave the group of :meth:`join_group`."""
        return self._do("leave group", "/destroy_weights_update_group", {"group_name": group})

    def checksums(self) -> concurrent.futures.Future[list[dict[str, str]]]:
        """Return, per tensor-parallel rank in order, the checksum of every tensor that it holds, by name."""
        return self._submit(self._checksums())

    def set_version(self, version: int) -> concurrent.futures.Future[None]:
        """Name the version of the weights that the server holds now. Running requests go on."""
        body = {"new_version": str(version), "abort_all_requests": False}
        return self._do("set version", "/update_weight_version", body)

    def weight_version(self) -> concurrent.futures.Future[int]:
        """Return the version of the weights that the server holds; 0 for those it loaded when it started."""
        return self._submit(self._weight_version())

    def release_memory(self, tags: Sequence[str] | None = None) -> concurrent.futures.Future[None]:
        """Free device memory: of "weights", "kv_cache", ..., or all. Nothing may be running."""
        return self._do("release memory", "/release_memory_occupation", _tags(tags), empty=True)

    def resume_memory(self, tags: Sequence[str] | None = None) -> concurrent.futures.Future[None]:
        """Allocate again what :meth:`release_memory` freed; weights must then be loaded again."""
        return self._do("resume memory", "/resume_memory_occupation", _tags(tags), empty=True)

    def info(self) -> concurrent.futures.Future[dict[str, Any]]:
        """Return the server's arguments and state, as it tells them."""
        return self._submit(self._read("info", "/server_info"))

    def loads(self) -> concurrent.futures.Future[dict[str, Any]]:
        """Return the load per data-parallel rank, under "loads": requests running and waiting, ..."""
        return self._submit(self._read("loads", "/v1/loads?include=core"))

    def _do(
        self, step: str, path: str, body: Mapping[str, Any], empty: bool = False
    ) -> concurrent.futures.Future[None]:
        return self._submit(self._act(step, path, body, empty))

    def _submit(self, call: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        try:
            return self._loop.submit(self._unless_gone(call))
        except EngineError:
            call.close()
            raise

    async def _unless_gone(self, call: Coroutine[Any, Any, _T]) -> _T:
        answer, gone = asyncio.ensure_future(call), asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise EngineError(f"SGLang server {self.endpoint.url} is lost")
        finally:
            answer.cancel()
            gone.cancel()

    async def _act(self, step: str, path: str, body: Mapping[str, Any], empty: bool = False) -> None:
        """POST once. ``empty``: the reply need not be an object; these answer ``null`` or nothing."""
        http, timeout_s = self._loop.http, self._timeout_s
        try:
            if empty:
                await http.request("POST", self.endpoint, path, body, timeout_s=timeout_s)
            else:
                await http.request_json("POST", self.endpoint, path, body, timeout_s=timeout_s)
        except EngineError as error:
            raise self._named_step(step, error) from error

    async def _session(self, step: str, path: str) -> None:
        try:
            await self._loop.http.request_json("POST", self.endpoint, path, {}, timeout_s=self._timeout_s)
        except RequestRefused as error:
            if error.status != 404:
                raise self._named_step(step, error) from error
        except ServerFailure as error:
            raise self._named_step(step, error) from error

    async def _read(self, step: str, path: str) -> dict[str, Any]:
        try:
            return await self._loop.http.get_json(
                self.endpoint, path, timeout_s=_READING_TIMEOUT_S, retries=_READING
            )
        except EngineError as error:
            raise self._named_step(step, error) from error

    async def _flush(self, timeout_s: float) -> None:
        clock = asyncio.get_running_loop()
        deadline = clock.time() + timeout_s
        while True:
            try:
                # Not with ?timeout=: that waits for an empty queue, where requests of a "retract" pause wait.
                await self._loop.http.request(
                    "POST", self.endpoint, "/flush_cache", timeout_s=self._timeout_s
                )
                return
            except RequestRefused as error:
                # 400 is the scheduler's "not now"; a refused key or an unknown path will not pass.
                if error.status != 400 or clock.time() >= deadline:
                    raise self._named_step(f"flush cache (waited {timeout_s:g} s)", error) from error
            except ServerFailure as error:
                raise self._named_step("flush cache", error) from error
            await asyncio.sleep(_FLUSH_POLL_S)

    async def _checksums(self) -> list[dict[str, str]]:
        step, path = "checksums", "/weights_checker"
        try:
            reply = await self._loop.http.request_json(
                "POST", self.endpoint, path, {"action": "checksum"}, timeout_s=self._timeout_s
            )
            ranks = reply["ranks"]
            ordered = sorted(ranks, key=lambda rank: rank["parallelism_info"][0]["tp_rank"])
            return [dict(rank["checksums"]) for rank in ordered]
        except EngineError as error:
            raise self._named_step(step, error) from error
        except (KeyError, IndexError, TypeError) as error:
            raise self._named_step(step, f"unknown form of reply: {error!r} in {str(reply)[:300]}") from error

    async def _weight_version(self) -> int:
        step = "weight version"
        reply = await self._read(step, "/model_info")
        try:
            return parse_version(reply.get("weight_version"))
        except EngineError as error:
            raise self._named_step(step, error) from error

    def _named_step(self, step: str, why: EngineError | str) -> EngineError:
        return EngineError(f"SGLang server {self.endpoint.url}, {step}: {why}")


def _named(load_format: str | None, version: int | None) -> dict[str, str]:
    """Leave out what is None: a null version would still be a version."""
    chosen = {"load_format": load_format, "weight_version": None if version is None else str(version)}
    return {name: value for name, value in chosen.items() if value is not None}


def _tags(tags: Sequence[str] | None) -> dict[str, list[str]]:
    return {} if tags is None else {"tags": list(tags)}
