"""The control interface: what is sent, how failures are named, and what a real server makes of it."""

import base64
import concurrent.futures
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.sglang.http import EventLoopThread
from megatron_srpo.rollout.sglang.server import PauseMode, SGLangServer
from megatron_srpo.rollout.types import Request, SamplingParams
from megatron_srpo.weights.transports.sender_group import free_port, join_as_sender, leave
from tests.model.tiny import load_reference
from tests.rollout.models import full_forward_log_probs
from tests.rollout.sglang.fault_server import FaultServer
from tests.rollout.sglang.test_sampler import wait_until
from tests.sglang_servers import TINY_MODEL

Call = Callable[[SGLangServer], "concurrent.futures.Future[Any]"]


@pytest.fixture(scope="module")
def loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


CALLS: dict[str, tuple[Call, str]] = {
    "pause": (lambda server: server.pause("retract"), "/pause_generation"),
    "resume": (lambda server: server.resume(), "/continue_generation"),
    "begin update": (lambda server: server.begin_update(), "/begin_weight_update"),
    "end update": (lambda server: server.end_update(), "/end_weight_update"),
    "load from disk": (lambda server: server.load_from_disk("/weights", 3), "/update_weights_from_disk"),
    "load from tensors": (
        lambda server: server.load_from_tensors(["AA=="], "flattened_bucket", 3),
        "/update_weights_from_tensor",
    ),
    "join group": (
        lambda server: server.join_group("127.0.0.1", 1, 1, 2, "g", "gloo"),
        "/init_weights_update_group",
    ),
    "load 1 tensors from group g": (
        lambda server: server.load_from_group(["w"], ["float32"], [[2, 3]], "g", None),
        "/update_weights_from_distributed",
    ),
    "leave group": (lambda server: server.leave_group("g"), "/destroy_weights_update_group"),
    "set version": (lambda server: server.set_version(3), "/update_weight_version"),
    "release memory": (lambda server: server.release_memory(["kv_cache"]), "/release_memory_occupation"),
    "resume memory": (lambda server: server.resume_memory(), "/resume_memory_occupation"),
    "checksums": (lambda server: server.checksums(), "/weights_checker"),
}
READINGS: dict[str, tuple[Call, str]] = {
    "info": (lambda server: server.info(), "/server_info"),
    "loads": (lambda server: server.loads(), "/v1/loads"),
    "weight version": (lambda server: server.weight_version(), "/model_info"),
}


@pytest.mark.parametrize("step", CALLS)
def test_a_step_that_fails_is_named_and_not_repeated(loop: EventLoopThread, step: str) -> None:
    call, path = CALLS[step]
    with FaultServer(["500"]) as stand_in:
        future = call(SGLangServer(stand_in.endpoint, loop))
        with pytest.raises(EngineError, match=rf"{stand_in.endpoint.url}, {step}: .*{path}.*status 500"):
            future.result()
        assert stand_in.counts[path] == 1


@pytest.mark.parametrize("step", READINGS)
def test_reading_is_repeated_then_named(loop: EventLoopThread, step: str) -> None:
    call, path = READINGS[step]
    with FaultServer(["500"]) as stand_in:
        call(SGLangServer(stand_in.endpoint, loop)).result()
        assert stand_in.counts[path] == 2
        stand_in.always = "404"
        with pytest.raises(EngineError, match=rf"{stand_in.endpoint.url}, {step}: .*status 404"):
            call(SGLangServer(stand_in.endpoint, loop)).result()


@pytest.mark.parametrize("step", [step for step in CALLS if "memory" not in step])
def test_success_false_is_a_failure(loop: EventLoopThread, step: str) -> None:
    call, _ = CALLS[step]
    with (
        FaultServer([lambda reply: reply.update(success=False, message="no such tensor")]) as stand_in,
        pytest.raises(EngineError, match=rf"{step}: .*success is false.*no such tensor"),
    ):
        call(SGLangServer(stand_in.endpoint, loop)).result()


def test_updates_leave_the_cache_to_us_and_the_version_to_the_last(loop: EventLoopThread) -> None:
    with FaultServer() as stand_in:
        server = SGLangServer(stand_in.endpoint, loop)
        server.load_from_disk("/weights", 3).result()
        server.load_from_tensors(["AA=="], None, None).result()
        server.load_from_group(["w"], ["float32"], [(2, 3)], "g", 4, "flattened_bucket").result()
        server.set_version(5).result()
        disk, tensors, group, version = stand_in.controls
    assert disk == {"model_path": "/weights", "weight_version": "3", "flush_cache": False}
    assert tensors == {"serialized_named_tensors": ["AA=="], "flush_cache": False}
    assert group == {
        "names": ["w"],
        "dtypes": ["float32"],
        "shapes": [[2, 3]],
        "group_name": "g",
        "weight_version": "4",
        "load_format": "flattened_bucket",
        "flush_cache": False,
    }
    assert version == {"new_version": "5", "abort_all_requests": False}, "a new name must abort nobody"


def test_older_servers_need_no_update_session(loop: EventLoopThread) -> None:
    with FaultServer(["404", "404", "400"]) as stand_in:
        server = SGLangServer(stand_in.endpoint, loop)
        server.begin_update().result()
        server.end_update().result()
        with pytest.raises(EngineError, match=r"begin update: .*status 400"):
            server.begin_update().result()


def test_flushing_asks_until_the_scheduler_agrees(loop: EventLoopThread) -> None:
    with FaultServer(["400", "400", "400"]) as stand_in:
        SGLangServer(stand_in.endpoint, loop).flush_cache(20.0).result()
        assert stand_in.counts["/flush_cache"] == 4
        assert set(stand_in.paths) == {"/flush_cache"}


@pytest.mark.parametrize(("status", "calls"), [("400", 2), ("401", 1), ("500", 1)])
def test_flushing_ends(loop: EventLoopThread, status: str, calls: int) -> None:
    with FaultServer(always=status) as stand_in:
        with pytest.raises(EngineError, match=f"{stand_in.endpoint.url}, flush cache.*status {status}"):
            SGLangServer(stand_in.endpoint, loop).flush_cache(0.1).result()
        assert stand_in.counts["/flush_cache"] >= calls
        assert calls > 1 or stand_in.counts["/flush_cache"] == 1


@pytest.mark.parametrize("ranks", [None, [{"checksums": {}}], [{"checksums": {}, "parallelism_info": []}]])
def test_unknown_checksums_are_named(loop: EventLoopThread, ranks: Any) -> None:
    with (
        FaultServer([lambda reply: reply.update(ranks=ranks)]) as stand_in,
        pytest.raises(EngineError, match=r"checksums: unknown form of reply"),
    ):
        SGLangServer(stand_in.endpoint, loop).checksums().result()


def test_checksums_come_in_the_order_of_ranks(loop: EventLoopThread) -> None:
    ranks = [
        {"checksums": {"w": f"sum {rank}"}, "parallelism_info": [{"role": "target", "tp_rank": rank}]}
        for rank in (1, 0)
    ]
    with FaultServer([lambda reply: reply.update(ranks=ranks)]) as stand_in:
        found = SGLangServer(stand_in.endpoint, loop).checksums().result()
    assert found == [{"w": "sum 0"}, {"w": "sum 1"}]


def test_a_version_that_is_not_ours_is_named(loop: EventLoopThread) -> None:
    with FaultServer(version="v7") as stand_in:
        with pytest.raises(EngineError, match=r"weight version: .*'v7'"):
            SGLangServer(stand_in.endpoint, loop).weight_version().result()
        stand_in.version = "default"
        assert SGLangServer(stand_in.endpoint, loop).weight_version().result() == 0


# --- The real server -------------------------------------------------------------------------------------


class Control:
    """One real server, an engine over it, and what its weights make of a sequence."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.engine = SGLangEngine([endpoint], vocab_size=640, stop_tokens=())
        self.server = self.engine.servers[0]
        self.prompt = tuple(range(20, 60))

    def sample(self, tokens: int = 12) -> tuple[tuple[int, ...], tuple[float, ...], int]:
        request = Request("r", self.prompt, 5)
        (completion,) = self.engine.generate([request], SamplingParams(1.0, 1.0, tokens))
        return completion.tokens, completion.log_probs, completion.weight_version

    def assert_serves(self, model: torch.nn.Module, version: int) -> None:
        """1e-4: what is allowed between trainer and engine; rounding of fp32 log-probs here is about 1e-6."""
        tokens, log_probs, found = self.sample()
        assert found == version
        assert log_probs == pytest.approx(full_forward_log_probs(model, self.prompt, tokens, 1.0), abs=1e-4)

    def running(self) -> int:
        return sum(
            rank["num_running_reqs"] + rank["num_waiting_reqs"]
            for rank in self.server.loads().result()["loads"]
        )

    def becomes_idle(self) -> None:
        """Wait: the last reply of a request leaves the server before its scheduler drops the request."""
        wait_until(lambda: self.running() == 0, 60)

    def switch(self, load: Callable[[], None], session: bool = True) -> None:
        """Replace the weights in the order that holds for all servers."""
        self.server.pause("abort").result()
        self.server.flush_cache().result()
        if session:
            self.server.begin_update().result()
        load()
        if session:
            self.server.end_update().result()
        self.server.resume().result()


@pytest.fixture()
def control(sglang_endpoint: Endpoint) -> Iterator[Control]:
    """The shared server; its weights, version and idleness are restored."""
    control = Control(sglang_endpoint)
    yield control
    control.switch(lambda: control.server.load_from_disk(str(TINY_MODEL), 0).result(), session=False)
    control.engine.close()


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model with every weight moved a little."""
    folder = tmp_path_factory.mktemp("moved")
    model = load_reference(TINY_MODEL)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    return load_reference(TINY_MODEL)


@pytest.fixture(scope="module")
def moved(other_folder: Path) -> torch.nn.Module:
    return load_reference(other_folder)


def named_weights(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach().clone()) for name, parameter in model.named_parameters()]


def test_weights_from_disk(
    control: Control, other_folder: Path, original: torch.nn.Module, moved: torch.nn.Module
) -> None:
    control.assert_serves(original, 0)
    before = control.server.checksums().result()
    control.switch(lambda: control.server.load_from_disk(str(other_folder), 6).result(), session=False)
    control.assert_serves(moved, 6)
    assert control.server.weight_version().result() == 6
    (changed,) = control.server.checksums().result()
    assert set(changed) == set(before[0])
    assert all(changed[name] != before[0][name] for name in changed)
    control.switch(lambda: control.server.load_from_disk(str(TINY_MODEL), 7).result(), session=False)
    assert control.server.checksums().result() == before
    control.assert_serves(original, 7)


def test_weights_from_a_folder_that_is_not_there(control: Control, original: torch.nn.Module) -> None:
    with pytest.raises(EngineError, match="load from disk"):
        control.server.load_from_disk("/nowhere", 9).result()
    control.assert_serves(original, 0)


def test_weights_from_tensors(control: Control, moved: torch.nn.Module) -> None:
    payload = base64.b64encode(pickle.dumps(named_weights(moved))).decode()
    control.switch(lambda: control.server.load_from_tensors([payload], None, 8).result())
    control.assert_serves(moved, 8)


def test_tensors_outside_an_update_are_refused(control: Control, original: torch.nn.Module) -> None:
    payload = base64.b64encode(pickle.dumps(named_weights(original)[:1])).decode()
    with pytest.raises(EngineError, match=r"load from tensors: .*begin_weight_update"):
        control.server.load_from_tensors([payload], None, 8).result()


def test_weights_from_a_group(control: Control, moved: torch.nn.Module) -> None:
    port = free_port("127.0.0.1")
    joined = control.server.join_group("127.0.0.1", port, 1, 2, "wg", "gloo")
    group = join_as_sender("127.0.0.1", port, 2, "wg", "gloo", 60.0)
    joined.result(timeout=60)
    weights = named_weights(moved)

    def load() -> None:
        future = control.server.load_from_group(
            [name for name, _ in weights],
            [str(tensor.dtype).removeprefix("torch.") for _, tensor in weights],
            [list(tensor.shape) for _, tensor in weights],
            "wg",
            9,
        )
        for _, tensor in weights:
            dist.broadcast(tensor, group_src=0, group=group)
        future.result(timeout=60)

    control.switch(load)
    left = control.server.leave_group("wg")
    leave(group)
    left.result(timeout=60)
    control.assert_serves(moved, 9)


def test_flushing_empties_the_cache_and_waits_for_running_requests(control: Control) -> None:
    generation = control.engine.submit([Request("r", control.prompt, 1)], SamplingParams(1.0, 1.0, 600))
    while not control.running():
        time.sleep(0.01)
    with pytest.raises(EngineError, match=r"flush cache \(waited 0.2 s\).*status 400"):
        control.server.flush_cache(0.2).result()
    assert not generation.done
    control.server.flush_cache(60.0).result()
    assert len(generation.result()[0].tokens) == 600


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_a_pause_in_the_middle_keeps_every_token_and_its_version(
    control: Control, mode: PauseMode, other_folder: Path
) -> None:
    requests = [Request(str(seed), control.prompt, seed) for seed in range(3)]
    generation = control.engine.submit(requests, SamplingParams(1.0, 1.0, 500))
    while not control.running():
        time.sleep(0.01)
    time.sleep(0.3)
    control.server.pause(mode).result()
    assert not generation.done
    if mode != "in_place":
        control.server.flush_cache().result()
    control.server.load_from_disk(str(other_folder), 4).result()
    control.server.resume().result()
    completions = generation.result()
    for completion in completions:
        assert (completion.finish_reason, len(completion.tokens)) == ("length", 500)
        assert [span.version for span in completion.version_spans] == [0, 4]
        assert completion.weight_version == 0
    control.becomes_idle()


@pytest.mark.parametrize("mode", ["abort", "retract"])
def test_tokens_across_an_update_have_the_log_probs_of_their_own_weights(
    control: Control, mode: PauseMode, other_folder: Path, original: torch.nn.Module, moved: torch.nn.Module
) -> None:
    generation = control.engine.submit([Request("r", control.prompt, 1)], SamplingParams(1.0, 1.0, 300))
    while not control.running():
        time.sleep(0.01)
    time.sleep(0.3)
    control.server.pause(mode).result()
    control.server.flush_cache().result()
    control.server.load_from_disk(str(other_folder), 4).result()
    control.server.resume().result()
    (completion,) = generation.result()
    first, _ = completion.version_spans
    for model, part in ((original, slice(0, first.tokens)), (moved, slice(first.tokens, None))):
        expected = full_forward_log_probs(model, control.prompt, completion.tokens, 1.0)
        assert completion.log_probs[part] == pytest.approx(expected[part], abs=1e-4)


def test_a_paused_server_lets_requests_wait(control: Control) -> None:
    control.server.pause("retract").result()
    generation = control.engine.submit([Request("r", control.prompt, 1)], SamplingParams(1.0, 1.0, 4))
    waited = threading.Event()
    threading.Timer(0.3, waited.set).start()
    waited.wait()
    assert not generation.done
    control.server.resume().result()
    assert len(generation.result()[0].tokens) == 4


def test_naming_a_version_aborts_nobody(control: Control) -> None:
    generation = control.engine.submit([Request("r", control.prompt, 1)], SamplingParams(1.0, 1.0, 200))
    while not control.running():
        time.sleep(0.01)
    control.server.set_version(2).result()
    (completion,) = generation.result()
    assert completion.finish_reason == "length"
    assert control.server.weight_version().result() == 2


def test_memory_comes_back(control: Control, original: torch.nn.Module) -> None:
    """On a CPU nothing is freed, but the calls and their order are the same."""
    control.server.flush_cache().result()
    control.server.release_memory(["kv_cache"]).result()
    control.server.resume_memory(["kv_cache"]).result()
    control.assert_serves(original, 0)


def test_what_a_server_says_of_itself(control: Control) -> None:
    assert control.server.info().result()["tp_size"] == 1
    assert len(control.server.checksums().result()) == 1
    control.becomes_idle()


def test_a_machine_that_is_given_up_is_not_waited_for(loop: EventLoopThread) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        server = SGLangServer(Endpoint(f"http://127.0.0.1:{mute.getsockname()[1]}"), loop)
        hanging = server.set_version(3)
        connection, _ = mute.accept()
        with connection:
            assert connection.recv(4) == b"POST"
            server.give_up()
            with pytest.raises(EngineError, match=rf"SGLang server {server.name} is lost"):
                hanging.result(30)
            with pytest.raises(EngineError, match="is lost"):
                server.info().result(30)
