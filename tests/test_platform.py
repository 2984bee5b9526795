"""The platform: places of ranks, environments of children, and Megatron-Core on a machine without CUDA.

What changes torch for a whole process runs in worker processes (``run_ranks``) or in a child of its own.
"""

import importlib.machinery
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.megatron_on_cpu import install, triton_modules
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[1]
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")

# The CPU answers are for machines without CUDA; with CUDA nothing is replaced, which has its own test below.
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU answers are not used with CUDA")


@pytest.fixture
def no_place(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that no launcher started."""
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


class TestRankEnvironment:
    def test_none_without_a_launcher(self, no_place: pytest.MonkeyPatch) -> None:
        assert platform.rank_environment() is None

    @pytest.mark.parametrize("only", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
    def test_one_variable_alone_is_no_place(self, no_place: pytest.MonkeyPatch, only: str) -> None:
        no_place.setenv(only, "1")
        assert platform.rank_environment() is None

    def test_what_torchrun_says(self, no_place: pytest.MonkeyPatch) -> None:
        for name, value in zip(PLACE, ("5", "8", "1"), strict=True):
            no_place.setenv(name, value)
        assert platform.rank_environment() == platform.RankEnvironment(rank=5, world_size=8, local_rank=1)

    def test_the_local_rank_may_be_absent(self, no_place: pytest.MonkeyPatch) -> None:
        no_place.setenv("RANK", "1")
        no_place.setenv("WORLD_SIZE", "2")
        assert platform.rank_environment() == platform.RankEnvironment(1, 2, 0)


class TestJobName:
    @pytest.mark.parametrize(
        ("job", "restarts", "name"),
        [(None, None, ""), ("7", None, "7_0"), ("7", "3", "7_3"), (None, "3", "")],
    )
    def test_job_and_restart(
        self, monkeypatch: pytest.MonkeyPatch, job: str | None, restarts: str | None, name: str
    ) -> None:
        for variable, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restarts)):
            monkeypatch.delenv(variable, raising=False)
            if value is not None:
                monkeypatch.setenv(variable, value)
        assert platform.job_name() == name


class TestChildEnvironment:
    def test_one_thread_unless_chosen_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert platform.child_environment()["OMP_NUM_THREADS"] == "1"
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert platform.child_environment()["OMP_NUM_THREADS"] == "3"
        assert platform.child_environment({"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"

    def test_the_rest_is_inherited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_SETTING", "kept")
        child = platform.child_environment({"MORE": "x"})
        assert (child["SOME_SETTING"], child["MORE"]) == ("kept", "x")
        assert "MORE" not in os.environ

    def test_one_connection_per_device_unless_chosen_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
        assert platform.child_environment()["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        assert platform.child_environment()["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"

    def test_limit_threads_is_for_future_children(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS"):
            monkeypatch.setenv(name, "restored by monkeypatch")
            monkeypatch.delenv(name)
        platform.limit_threads()
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


class TestDevice:
    @pytest.mark.parametrize(
        ("cuda", "device", "backend"), [(False, "cpu", "gloo"), (True, "cuda:3", "nccl")]
    )
    def test_device_and_backend(
        self, no_place: pytest.MonkeyPatch, cuda: bool, device: str, backend: str
    ) -> None:
        no_place.setattr(torch.cuda, "is_available", lambda: cuda)
        for name, value in zip(PLACE, ("11", "16", "3"), strict=True):
            no_place.setenv(name, value)
        assert platform.device() == torch.device(device)
        assert platform.backend() == backend
        assert platform.has_cuda() is cuda

    def test_synchronize_asks_cuda_only_where_it_exists(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        platform.synchronize()
        assert calls == []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        platform.synchronize()
        assert calls == ["synchronize"]

    def test_peak_memory_is_in_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        # A process with torch in it occupies between 50 MB and, generously, 1 TB.
        assert 5e7 < platform.peak_memory_bytes() < 1e12
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 42)
        assert platform.peak_memory_bytes() == 42


MEASURE_A_LIST = """
from megatron_srpo import platform
early = bytearray(150_000_000)
del early  # an earlier peak must not count
meter = platform.MemoryMeter()
kept = bytearray(50_000_000)
del kept
print(meter.rise())
"""


class TestMemoryMeter:
    def test_the_rise_of_the_peak(self) -> None:
        """Zeroed memory is touched in whole pages; the interpreter's own small objects are far below 2 MB."""
        done = subprocess.run([sys.executable, "-c", MEASURE_A_LIST], capture_output=True, text=True)
        assert int(done.stdout) == pytest.approx(50e6, abs=2e6), done.stderr

    @pytest.mark.skipif(
        not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc/self/clear_refs (Linux)"
    )
    def test_each_meter_begins_anew(self) -> None:
        for size in (
            96 << 20,
            32 << 20,
        ):  # a peak that was not reset would show the first
            meter = platform.MemoryMeter(give_back=True, on_device=False)
            torch.ones(size, dtype=torch.uint8)
            # The kernel counts pages per thread and adds them up now and then: a few MiB.
            assert meter.rise() == pytest.approx(size, abs=8 << 20)

    def test_cuda_allocations_where_there_is_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 52)
        assert platform.MemoryMeter().rise() == 42
        assert calls == ["reset"]

    def test_a_system_that_cannot_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *arguments: Any, **options: Any) -> int:
            raise PermissionError(path)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(Path, "write_text", refuse)
        assert platform.MemoryMeter().rise() is None


@pytest.mark.parametrize(
    ("terminal", "term", "expected"),
    [(True, "xterm", True), (True, "dumb", False), (True, None, False), (False, "xterm", False)],
)
def test_console_is_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str | None, expected: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert platform.console_is_terminal() is expected


def run_python(code: str, **environment: str) -> dict[str, Any]:
    """Run code in a fresh interpreter without a rank's place; return the JSON that it prints last."""
    child = {k: v for k, v in platform.child_environment(environment).items() if k not in PLACE}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=child, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ALONE = """
import json, sys, torch
zeros, cuda = torch.zeros, torch.Tensor.cuda
import megatron_srpo.cli
seen = {
    "megatron": "megatron.core" in sys.modules,
    "cuda": torch.cuda.is_initialized(),
    "untouched": torch.zeros is zeros and torch.Tensor.cuda is cuda,
}
import torch.distributed as dist
from megatron_srpo import platform
place = platform.init_distributed(30)
value = torch.ones(2, device=platform.device())
dist.all_reduce(value)
seen |= {
    "place": [place.rank, place.world_size, place.local_rank],
    "world": dist.get_world_size(),
    "sum": value.tolist(),
    "threads": torch.get_num_threads(),
}
dist.destroy_process_group()
print(json.dumps(seen))
"""


def test_a_process_of_its_own() -> None:
    """Importing every command leaves torch alone; a process without a launcher becomes a group of one."""
    seen = run_python(ALONE, OMP_NUM_THREADS="1")
    assert (seen["megatron"], seen["cuda"], seen["untouched"]) == (False, False, True)
    assert (seen["place"], seen["world"], seen["sum"]) == ([0, 1, 0], 1, [1.0, 1.0])
    if not torch.cuda.is_available():
        assert seen["threads"] == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def join_by_environment(rank: int, world: int, port: int) -> list[Any]:
    """Join as torchrun's children do: by environment variables."""
    dist.destroy_process_group()  # the harness's own
    given = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost"}
    given["MASTER_PORT"] = port
    os.environ.update({name: str(value) for name, value in given.items()})
    try:
        place = platform.init_distributed(60)
        value = torch.tensor([float(rank + 1)])
        dist.all_reduce(value)
    finally:
        for name in given:
            del os.environ[name]
    return [place.rank, place.world_size, value.item(), dist.get_backend()]


@without_cuda
def test_ranks_of_a_launcher_find_one_another() -> None:
    assert run_ranks(2, join_by_environment, free_port()) == [[0, 2, 3.0, "gloo"], [1, 2, 3.0, "gloo"]]


def test_the_cpu_answers_are_refused_where_cuda_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="must not be installed on a machine with CUDA"):
        install()
    assert torch.zeros is zeros


def test_with_cuda_nothing_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("installed in spite of CUDA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("megatron_srpo.megatron_on_cpu.install", never)
    platform.prepare_megatron()


def replaced_objects() -> list[Any]:
    return [torch.zeros, torch.empty, torch.Tensor.cuda, torch.Tensor.type, torch.cuda.current_device]


def install_twice(rank: int, world: int) -> bool:
    platform.prepare_megatron()
    once = replaced_objects()
    platform.prepare_megatron()
    install()
    return all(one is other for one, other in zip(once, replaced_objects(), strict=True))


@without_cuda
def test_installing_twice_changes_nothing_more() -> None:
    assert run_ranks(1, install_twice) == [True]


def calls_of_megatron(rank: int, world: int) -> dict[str, Any]:
    """What Megatron-Core asks of torch, answered on the CPU."""
    platform.prepare_megatron()
    import megatron.core
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.pipeline_parallel import schedules

    made = [
        torch.zeros(2, device="cuda"),
        torch.empty(2, device=torch.device("cuda", 0), pin_memory=True),
        torch.tensor([1.0], device=torch.cuda.current_device()),
        torch.ones(2).cuda(),
        torch.nn.Linear(1, 1).cuda().weight,
    ]
    with torch.cuda.stream(torch.cuda.Stream()) as stream:
        stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.synchronize()
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    drawn = torch.rand(1).item()
    torch.cuda.set_rng_state(state)
    names: dict[str, Any] = {"__name__": "megatron.core.optimizer.sample"}
    exec("def name_of(tensor):\n    return tensor.type()", names)
    return {
        "version": megatron.core.__version__,
        "modules": [module.__name__ for module in (parallel_state, tensor_parallel, schedules)],
        "devices": sorted({tensor.device.type for tensor in made}),
        "drawn again": torch.rand(1).item() == drawn,
        "seeded": torch.Generator().manual_seed(7).get_state().equal(state),
        "name for us": torch.ones(1).type(),
        "name for Megatron's optimizer": names["name_of"](torch.ones(1)),
        "converted": str(torch.ones(1).type(torch.float64).dtype),
    }


@without_cuda
def test_megatron_core_works_on_the_cpu() -> None:
    (seen,) = run_ranks(1, calls_of_megatron)
    assert seen["version"][0].isdigit()
    assert seen["modules"] == [
        "megatron.core.parallel_state",
        "megatron.core.tensor_parallel",
        "megatron.core.pipeline_parallel.schedules",
    ]
    assert seen["devices"] == ["cpu"]
    assert seen["drawn again"] and seen["seeded"]
    assert (seen["name for us"], seen["converted"]) == ("torch.FloatTensor", "torch.float64")
    assert seen["name for Megatron's optimizer"] == "torch.cuda.FloatTensor"


COMPILER_FIRST = """
import sys, torch, torch._dynamo
import torch.distributed as dist
# Where torch.compile is known already, making a process group has its rules for torch.cuda read anew.
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
from megatron_srpo import platform
platform.prepare_megatron()
print(torch.compile(lambda x: x + 1)(torch.ones(1)).item())
"""


@without_cuda
def test_the_compiler_may_be_loaded_before_megatron(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILER_FIRST, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env=platform.child_environment(),
        timeout=120,
    )
    assert done.stdout == "2.0\n", done.stderr


class TestTritonModules:
    """Stand-ins for two modules of Megatron-Core, registered only where Triton is absent."""

    KERNELS = "megatron.core.transformer.moe.ops.paged_stash"
    STASH = "megatron.core.transformer.moe.paged_stash"

    @pytest.fixture
    def packages(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """No Triton, and a Megatron-Core in a folder of the test's."""
        found = importlib.machinery.ModuleSpec("megatron", None, is_package=True)
        found.submodule_search_locations = [str(tmp_path / "elsewhere"), str(tmp_path)]
        specs: dict[str, Any] = {"triton": None, "megatron": found}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: specs[name])
        for name in (self.KERNELS, self.STASH):
            monkeypatch.setitem(sys.modules, name, None)  # restored afterwards
            del sys.modules[name]
        (tmp_path / "core" / "transformer" / "moe").mkdir(parents=True)
        return tmp_path

    @pytest.mark.parametrize(
        ("source", "stubbed"), [("\nimport triton\n", True), ("\nimport torch\n", False), (None, False)]
    )
    def test_only_what_would_import_triton(self, packages: Path, source: str | None, stubbed: bool) -> None:
        if source is not None:
            (packages / "core" / "transformer" / "moe" / "paged_stash.py").write_text(source)
        triton_modules.stub_missing()
        assert sys.modules[self.KERNELS].__dict__["GLOBAL_BLOCK_SIZE"] == 1024
        assert (self.STASH in sys.modules) is stubbed

    def test_a_stand_in_answers_calls_but_not_protocols(self, packages: Path) -> None:
        (packages / "core" / "transformer" / "moe" / "paged_stash.py").write_text("\nimport triton\n")
        triton_modules.stub_missing()
        stand_in: Any = sys.modules[self.STASH]
        assert stand_in.anything(1, key=2) is None
        with pytest.raises(AttributeError):
            stand_in.__wrapped__  # noqa: B018

    def test_nothing_where_triton_is_installed(self, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.machinery.ModuleSpec("triton", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        triton_modules.stub_missing()
        assert self.KERNELS not in sys.modules
