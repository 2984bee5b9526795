"""The benchmark of weight synchronisation: arithmetic, refusals, and one small run. Nothing is timed."""

import json
import math
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo import platform
from megatron_srpo.errors import EngineError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.plan import Training, plan_shards, plan_whole
from megatron_srpo.weights.table import hf_shapes
from tests.ranks import run_ranks
from tests.sglang_servers import require_sglang
from tools.benchmarks import bench_weight_sync as bench
from tools.benchmarks import weight_sync_links as links
from tools.benchmarks import weight_sync_ranks as ranks
from tools.benchmarks import weight_sync_variants as variants
from tools.benchmarks.lane import BenchmarkError

SMALL = bench.model_config(300_000, 1024, 2, "float32")
ARCH = Qwen3Architecture.from_hf_config(SMALL)


# --- the model -------------------------------------------------------------------------------------------


@given(st.integers(1, 2 * 10**9), st.sampled_from([1024, 16384]), st.sampled_from([1, 2, 3]))
def test_the_model_has_the_wanted_size(wanted: int, vocabulary: int, pipeline: int) -> None:
    config = bench.model_config(wanted, vocabulary, pipeline, "bfloat16")
    size = bench.model_size(Qwen3Architecture.from_hf_config(config))
    layer = bench._per_layer(config["hidden_size"])
    assert size == bench._total(config["hidden_size"], config["num_hidden_layers"], vocabulary)
    assert config["num_hidden_layers"] % pipeline == 0
    assert size >= wanted
    smallest = bench._total(bench._WIDTHS[-1], pipeline, vocabulary)
    assert size - wanted < pipeline * layer or size == smallest


def test_by_default_layers_dominate() -> None:
    config = bench.model_config(10**8, 16384, 1, "bfloat16")
    arch = Qwen3Architecture.from_hf_config(config)
    assert math.prod(hf_shapes(arch)["model.embed_tokens.weight"]) < 0.2 * bench.model_size(arch)
    assert bench.model_size(arch) >= 10**8


def test_the_model_folder_is_complete(tmp_path: Path) -> None:
    from megatron_srpo.weights.hf_files import open_hf

    arch = bench.write_model(tmp_path / "model", SMALL)
    stored = open_hf(arch, tmp_path / "model")  # raises on a missing or misshapen tensor
    assert {item.dtype for item in stored.tensors.values()} == {"F32"}
    assert (tmp_path / "model" / "tokenizer.json").is_file()


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "number"), [("100M", 10**8), ("1.5k", 1500), ("2B", 2 * 10**9), ("7", 7)])
def test_numbers_of_parameters(text: str, number: int) -> None:
    assert bench.parse(["--parameters", text]).parameters == number


@pytest.mark.parametrize(
    "arguments", [["--parameters", "0"], ["--parameters", "many"], ["--rounds", "0"], ["--engine-tp", "-1"]]
)
def test_wrong_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        bench.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", "100"], "--vocabulary 100 is below the tokenizer's 640"),
        (["--train-tp", "5"], "tensor parallel size 5 does not divide"),
        (["--engine-tp", "1", "7"], "engine tensor parallel size 7 does not divide"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert bench.main(arguments) == 2
    assert message in capsys.readouterr().err


# --- ranks -----------------------------------------------------------------------------------------------


def test_ranks_know_their_place(tmp_path: Path) -> None:
    code = "import os; print(*(os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR')))"
    with (tmp_path / "log").open("w") as output:
        assert bench.run_ranks([sys.executable, "-c", code], 2, output) == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["0 2 127.0.0.1", "1 2 127.0.0.1"]


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    """The other would sleep for an hour."""
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(3600)"
    with (tmp_path / "log").open("w") as output:
        assert bench.run_ranks([sys.executable, "-c", code], 2, output) == 7


def test_a_module_that_fails_is_quoted(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text("{}", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"(?s)weight_sync_links ended with status 1.*bucket_bytes"):
        bench.launch("weight_sync_links", 1, spec, tmp_path / "result.json")


def test_an_error_of_the_ranks_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"error": "server x did not answer"}), encoding="utf-8")
    monkeypatch.setattr(bench, "run_ranks", lambda command, ranks, output: 0)
    with pytest.raises(BenchmarkError, match="server x did not answer"):
        bench.launch("weight_sync_ranks", 1, tmp_path / "spec.json", result)


def spec_of(folder: Path) -> ranks.RanksSpec:
    return ranks.RanksSpec(
        folder=str(folder),
        scratch=str(folder),
        result="",
        url="http://127.0.0.1:1",
        api_key="secret",
        engine_tp=1,
        tp=1,
        pp=1,
        dtype="float32",
        bucket_bytes=1,
        rounds=1,
        timeout_s=5.0,
    )


def test_the_spec_holds_a_key_and_is_private(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    spec.save(tmp_path / "spec.json")
    assert ranks.RanksSpec.load(str(tmp_path / "spec.json")) == spec
    assert (tmp_path / "spec.json").stat().st_mode & 0o077 == 0


def _error(rank: int, world: int, folder: str) -> Any:
    return ranks.run(spec_of(Path(folder))).get("error")


def test_errors_that_a_user_can_mend_become_the_result(tmp_path: Path) -> None:
    bench.write_model(tmp_path / "model", SMALL)
    (absent,) = run_ranks(1, _error, str(tmp_path / "absent"))
    assert "does not exist" in absent
    (unreachable,) = run_ranks(1, _error, str(tmp_path / "model"))
    assert "http://127.0.0.1:1" in unreachable and "pausing" in unreachable


def test_how_memory_is_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = platform.MemoryMeter()
    monkeypatch.setattr(meter, "rise", lambda: 5)
    assert ranks.how(meter) == (ranks.ON_DEVICE if platform.has_cuda() else ranks.RESIDENT)
    monkeypatch.setattr(meter, "rise", lambda: None)
    assert ranks.how(meter) == ranks.UNKNOWN


# --- variants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_bytes_of_a_push(tp: int, pp: int) -> None:
    rows = ARCH.padded_vocab_size(tp) // tp
    training = Training(tp, PipelineStages(pp), rows)
    model = 4 * bench.model_size(ARCH)
    whole = plan_whole(ARCH, training, [0], 1 << 16)
    found = {
        name: variants.traffic(name, ARCH, training, whole, engine_tp=2, item=4)
        for name in ("collective", variants.GATHER_DISK, variants.PER_TENSOR)
    }
    for item in found.values():
        assert item.sent == model and item.received == 2 * model
    shards = variants.traffic("tensor", ARCH, training, plan_shards(ARCH, training, 2, 1 << 16), 2, 4)
    # 1.05: the engine's vocabulary padding and norms that both of its ranks hold.
    assert model <= shards.sent == shards.received <= 1.05 * model
    # The plan brings each slice to one rank; gathering brings the whole model to all of them.
    others = (tp * pp - 1) * model
    assert found["collective"].between_ranks == pytest.approx(model * (1 - 1 / (tp * pp)), rel=0.25)
    assert found[variants.GATHER_DISK].between_ranks >= others
    assert found[variants.GATHER_DISK] == found[variants.PER_TENSOR]


class _Server:
    """Takes tensors from the group, or refuses the one that it is told to."""

    name = "server"

    def __init__(self, refused: str) -> None:
        self.refused, self.calls = refused, []

    def load_from_group(self, names: list[str], *rest: Any) -> Any:
        self.calls += names
        if names[0] == self.refused:
            raise EngineError(f"refuses {names[0]}")
        loaded: Future[None] = Future()
        loaded.set_result(None)
        return loaded


def _site(folder: str) -> Any:
    from megatron_srpo.model.architecture import Qwen3Architecture
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf
    from megatron_srpo.weights.sync import SyncSettings

    groups = initialize_parallel(2, 1)
    arch = Qwen3Architecture.from_hf_folder(folder)
    policy = build_policy(arch, groups)
    load_hf(policy, arch, folder, groups)
    settings = SyncSettings(torch.float32, timeout_s=20.0)
    return variants.Site(policy, arch, groups, 1, settings, Path(folder), Path(folder) / "scratch")


def _gather_to_disk(rank: int, world: int, folder: str) -> dict[str, torch.Tensor] | None:
    from safetensors.torch import load_file

    from megatron_srpo.weights.sync import SyncReport

    site = _site(folder)
    variants.make_variant(variants.GATHER_DISK, site)._send_rounds(SyncReport(1, 0))
    return load_file(site.scratch / "gathered" / "model.safetensors") if rank == 0 else None


def test_the_full_gather_writes_the_whole_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    bench.write_model(tmp_path / "model", SMALL)
    found, _ = run_ranks(2, _gather_to_disk, str(tmp_path / "model"))
    expected = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _one_by_one(rank: int, world: int, folder: str, refused: str) -> tuple[list[str], str]:
    from megatron_srpo.weights.sync import SyncReport

    sync: Any = variants.make_variant(variants.PER_TENSOR, _site(folder))
    server = _Server(refused)
    if rank == 0:
        alone = torch.distributed.new_group([0], use_local_synchronization=True)
        sync._one_by_one._group, sync._one_by_one._servers = alone, [server]
    try:
        sync._send_rounds(SyncReport(1, 0))
    except EngineError as error:
        return server.calls, str(error)
    return server.calls, ""


def test_the_per_tensor_path_calls_once_for_each_tensor(tmp_path: Path) -> None:
    bench.write_model(tmp_path / "model", SMALL)
    (calls, error), (none, other) = run_ranks(2, _one_by_one, str(tmp_path / "model"), "")
    assert calls == list(hf_shapes(ARCH)) and none == []
    assert error == other == ""


def test_a_refused_tensor_fails_on_all_ranks_and_ends_the_sending(tmp_path: Path) -> None:
    bench.write_model(tmp_path / "model", SMALL)
    second = list(hf_shapes(ARCH))[1]
    (calls, error), (_, other) = run_ranks(2, _one_by_one, str(tmp_path / "model"), second)
    assert calls == list(hf_shapes(ARCH))[:2]
    assert error == other and f"refuses {second}" in error


def _links(rank: int, world: int, folder: str) -> dict[str, float]:
    return links.measure(1 << 16, Path(folder))


def test_every_link_is_measured_and_cleaned_up(tmp_path: Path) -> None:
    first, second = run_ranks(2, _links, str(tmp_path))
    assert first.keys() == set(variants.LINKS.values()) and all(rate > 0 for rate in first.values())
    assert second.keys() <= {"broadcast"}
    assert list(tmp_path.iterdir()) == []
    (alone,) = run_ranks(1, _links, str(tmp_path))
    assert alone.keys() == set(variants.LINKS.values()) - {"broadcast"}


# --- results ---------------------------------------------------------------------------------------------


def record(seconds: list[float], **changes: Any) -> dict[str, Any]:
    phases = {"pause": 0.1, "gather": 0.1, "send": 0.2, "load": 0.1, "flush": 0.4, "resume": 0.1}
    rounds = [{"seconds": value, "phases": phases} for value in seconds]
    content = {"verified": True, "extra_memory": 3 << 20, "between_ranks": 1, "sent": 2, "received": 3}
    return {**content, "rounds": rounds, **changes}


def test_the_rate_leaves_out_what_moves_no_weights() -> None:
    found = bench.summarise(record([1.0, 1.6, 3.0]), model_bytes=2 * 10**9, link=4.0)
    assert found["seconds"] == {"median": 1.6, "low": 1.0, "high": 3.0}
    assert found["gigabytes_per_second"] == pytest.approx(2.0 / (1.6 - 0.6))
    assert found["share_of_link"] == pytest.approx(0.5)
    assert bench.summarise(record([1.0]), 10**9, None)["share_of_link"] is None


def test_ratios_are_taken_round_by_round() -> None:
    """A slow third round of both must not show."""
    found = bench.ratios(record([2.0, 3.0, 40.0]), record([1.0, 1.5, 20.0]))
    assert found == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_the_table_shows_every_variant(capsys: pytest.CaptureFixture) -> None:
    records = {name: record([2.0, 4.0]) for name in variants.LINKS}
    records["tensor"] = record([1.0, 1.0], extra_memory=None)
    found = bench.summarise_all(records, 10**9, {"shared memory": 2.0, "disk": 1.0})
    assert found["tensor"]["ratio_to_full_gather"]["median"] == 3.0
    assert found["disk"]["ratio_to_per_tensor"]["median"] == 1.0
    assert found["collective"]["share_of_link"] is None  # its link was not measured
    settings = {"dtype": "bfloat16", "train_tp": 2, "train_pp": 1, "rounds": 2}
    whole = {"settings": settings, "model": {"parameters": 10**8}, "links": {"disk": 1.0}}
    bench.show(whole, {"engine_tp": 2, "memory": "how", "variants": found})
    text = capsys.readouterr().out
    assert all(name in text for name in variants.LINKS)
    assert "100.0 M parameters, bfloat16, trainer TP 2 x PP 1, engine TP 2" in text
    assert "3.00 (2.00-4.00)" in text and "disk 1.00 GB/s" in text


@pytest.mark.slow
def test_a_small_run_with_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    require_sglang()
    output = tmp_path / "found.json"
    chosen = ["--parameters", "300K", "--vocabulary", "1024", "--rounds", "1", "--engine-tp", "1"]
    disk = ["--folder", str(tmp_path / "weights")]
    assert bench.main([*chosen, *disk, "--bucket-mib", "1", "--output", str(output)]) == 0, (
        capsys.readouterr()
    )
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["links"].keys() == set(variants.LINKS.values())
    (layout,) = found["layouts"]
    assert list(layout["variants"]) == list(variants.LINKS)
    model = found["model"]["bytes"]
    for name, item in layout["variants"].items():
        assert item["verified"] is True, name
        assert len(item["rounds"]) == 1 and item["rounds"][0]["phases"].keys() >= set(bench.PHASES), name
        assert sum(item["rounds"][0]["phases"].values()) <= item["rounds"][0]["seconds"]
        assert model <= item["sent"] <= 1.05 * model and item["gigabytes_per_second"] > 0
        assert item["ratio_to_full_gather"]["median"] > 0 and item["share_of_link"] > 0
    assert "verified" in capsys.readouterr().out
