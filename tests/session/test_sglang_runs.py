"""Whole runs on real SGLang servers, undisturbed and under faults that are proved to have happened."""

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.config.run import RunConfig
from megatron_srpo.report.metrics import deterministic, read_metrics
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.session.status import read_status
from tests.ranks import RankFailure, run_ranks
from tests.session.faulty_proxy import FaultyProxy
from tests.session.test_loop import small_config
from tests.sglang_servers import API_KEY, require_sglang

PROMPTS, SAMPLES = 8, 4


@pytest.fixture(autouse=True)
def installed() -> None:
    require_sglang()


@pytest.fixture(scope="module")
def server(borrowed_endpoint: Endpoint) -> Endpoint:
    """A server that the runs of this file use one after another, as an external one."""
    return borrowed_endpoint


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(API_KEY)
    return path


def config_for(folder: Path, *overrides: str) -> RunConfig:
    return small_config(folder / "run", "rollout.engine=sglang", *overrides)


def external(url: str, key_file: Path) -> list[str]:
    return [f"rollout.sglang.urls=[{url}]", f"rollout.sglang.api_key_file={key_file}"]


def train_on(rank: int, world: int, config: RunConfig) -> list[int]:
    """Train; return, per step, how many samples this rank trained on, and check their identity."""
    return _train(config, lambda run: None)


def _train(config: RunConfig, prepare: Callable[[Any], None]) -> list[int]:
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=False) as run:
        prepare(run)
        counts: list[int] = []
        assign = run.assign

        def counted(batch: Any) -> Any:
            places = [(rollout.group, rollout.sample) for rollout in batch.rollouts]
            assert len(set(places)) == len(places), "a rollout twice"
            assert all(rollout.sequence.response for rollout in batch.rollouts)
            counts.append(len(places))
            return assign(batch)

        run.assign = counted
        train(run)
    return counts


def stop_while_sampling(rank: int, world: int, config: RunConfig) -> int:
    """Ask the run to stop once the second step's first response is there; return how many it had then."""
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    answered: list[str] = []
    with open_run(config, resume=False) as run:
        engine = run.parts.sampling._engine
        finished = engine._on_finished

        def note(url: str) -> None:
            finished(url)
            if run.step == 1:
                answered.append(url)
                (Path(config.output_dir) / "stop").touch()

        engine._on_finished = note
        assert not train(run)
        assert (run.step, run.saved_step) == (1, 1)
    return len(answered)


def resume_on(rank: int, world: int, config: RunConfig) -> None:
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=True) as run:
        assert run.step == 1 and train(run)


def check_accounted_for(config: RunConfig, counts: list[list[int]]) -> list[dict[str, float]]:
    """Every step trained on every rollout; return the rows."""
    rows = read_metrics(Path(config.output_dir) / "metrics.jsonl")
    steps = config.training.steps
    assert [row["step"] for row in rows if row["step"]] == list(range(1, steps + 1))
    assert counts == [[PROMPTS * SAMPLES] * steps] * len(counts)
    for row in rows:
        assert row.get("engine/logprob_diff_max", 0.0) < 1e-4
    return rows


class TestUndisturbed:
    def test_twenty_synchronisations_without_learning_change_nothing(
        self, tmp_path: Path, server: Endpoint, key_file: Path
    ) -> None:
        config = config_for(
            tmp_path,
            *external(server.url, key_file),
            "training.steps=20",
            "optimizer.learning_rate=0",
            "data.shuffle=false",
            "rollout.sync.verify_every=7",
        )
        counts = run_ranks(2, train_on, config, timeout=400)
        rows = check_accounted_for(config, counts)
        means = [row["engine/logprob_diff_mean"] for row in rows if row["step"]]
        # Flat: rounding of fp32 sums, around 3e-7, in another order for every batch.
        assert max(means) < 3e-6
        # Pushes 0, 7 and 14; the first, before step 1, has no row of its own.
        assert [row["step"] for row in rows if row.get("sync/verified")] == [7, 14]

    @pytest.mark.parametrize("transport", ["collective", pytest.param("disk", marks=pytest.mark.slow)])
    def test_the_other_transports_in_a_pipeline(
        self, tmp_path: Path, server: Endpoint, key_file: Path, transport: str
    ) -> None:
        config = config_for(
            tmp_path,
            *external(server.url, key_file),
            "training.steps=2",
            "parallel.pipeline=2",
            "parallel.tensor=1",
            f"rollout.sync.transport={transport}",
            "rollout.sync.verify_every=1",
        )
        rows = check_accounted_for(config, run_ranks(2, train_on, config, timeout=300))
        assert all(row["sync/verified"] for row in rows)

    def test_two_replicas_share_a_server(self, tmp_path: Path, server: Endpoint, key_file: Path) -> None:
        config = config_for(
            tmp_path, *external(server.url, key_file), "training.steps=2", "parallel.tensor=1"
        )
        counts = run_ranks(2, train_on, config, timeout=300)
        assert counts == [[PROMPTS * SAMPLES // 2] * 2] * 2
        rows = read_metrics(Path(config.output_dir) / "metrics.jsonl")
        assert rows[-1]["engine/logprob_diff_max"] < 1e-4

    def test_sampling_ahead_is_stale_by_one_step_at_most(
        self, tmp_path: Path, server: Endpoint, key_file: Path
    ) -> None:
        config = config_for(
            tmp_path,
            *external(server.url, key_file),
            "training.steps=4",
            "rollout.max_staleness=1",
            "optimizer.learning_rate=1e-3",
        )
        counts = run_ranks(2, train_on, config, timeout=300)
        assert counts == [[PROMPTS * SAMPLES] * 4] * 2
        rows = [row for row in read_metrics(Path(config.output_dir) / "metrics.jsonl") if row["step"]]
        assert [row["staleness/max"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
        # A step at this learning rate moves log-probs far more than rounding does. It depends on the server's
        # pace how many tokens the older weights have sampled, but some they have.
        assert all(row["engine/logprob_diff_max"] > 1e-4 for row in rows[1:])

    @pytest.mark.slow
    def test_a_request_to_stop_cuts_sampling_short_and_loses_nothing(
        self, tmp_path: Path, server: Endpoint, key_file: Path
    ) -> None:
        given = [*external(server.url, key_file), "training.steps=2", "parallel.tensor=1"]
        # One after the other, so that many are left when the first is there, however slow this test's looks.
        given += ["rollout.max_response_tokens=200", "rollout.sglang.max_concurrency=1"]
        whole, parts = (config_for(tmp_path / name, *given) for name in ("whole", "parts"))
        run_ranks(1, train_on, whole, timeout=300)
        answered = run_ranks(1, stop_while_sampling, parts, timeout=300)[0]
        assert answered < PROMPTS * SAMPLES, "sampling was over before it could be cut short"
        assert read_status(Path(parts.output_dir))["state"] == "stopped"
        run_ranks(1, resume_on, parts, timeout=300)
        rows = [
            [deterministic(row) for row in read_metrics(Path(config.output_dir) / "metrics.jsonl")]
            for config in (whole, parts)
        ]
        # Which server batch a response is sampled in decides the last bits of its log-probs.
        for one, other in zip(*rows, strict=True):
            for name in one:
                if not name.startswith(("sync/", "engine/")):
                    assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name

    def test_servers_that_share_the_devices_rest_while_the_trainer_works(
        self, tmp_path: Path, server: Endpoint, key_file: Path
    ) -> None:
        config = config_for(
            tmp_path, *external(server.url, key_file), "training.steps=2", "rollout.placement=colocated"
        )
        check_accounted_for(config, run_ranks(2, train_on, config, timeout=300))


class TestBadAnswers:
    def test_spoiled_answers_cost_only_their_repetition(
        self, tmp_path: Path, server: Endpoint, key_file: Path
    ) -> None:
        with FaultyProxy(server.url, {"500": 7, "truncated": 11, "reset": 13}) as proxy:
            config = config_for(tmp_path, *external(proxy.url, key_file), "training.steps=2")
            check_accounted_for(config, run_ranks(2, train_on, config, timeout=300))
        assert all(proxy.counts[fault] >= 3 for fault in ("500", "truncated", "reset"))
        assert proxy.counts["passed"] >= 2 * PROMPTS * SAMPLES

    def test_a_wrong_key_ends_the_run_before_it_begins(self, tmp_path: Path, server: Endpoint) -> None:
        wrong = tmp_path / "wrong"
        wrong.write_text("not the key")
        config = config_for(tmp_path, *external(server.url, wrong), "training.steps=1")
        with pytest.raises(RankFailure) as failure:
            run_ranks(2, train_on, config, timeout=120)
        # Both ranks say why: neither waits for the other until a time-out.
        assert str(failure.value).count("refuses the key given in sglang.api_key_file") >= 2

    def test_too_large_a_disagreement_ends_the_run(
        self, tmp_path: Path, server: Endpoint, key_file: Path
    ) -> None:
        config = config_for(
            tmp_path,
            *external(server.url, key_file),
            "training.steps=2",
            "rollout.max_staleness=1",
            "optimizer.learning_rate=1e-3",
            "rollout.max_logprob_difference=1e-5",
        )
        with pytest.raises(RankFailure, match=r"more than rollout\.max_logprob_difference = 1e-05"):
            run_ranks(2, train_on, config, timeout=120)


def serving_processes(run: Any) -> list[psutil.Process]:
    """The processes of the first server, the one that answers HTTP first."""
    main = psutil.Process(run.parts.publisher._fleet._servers[0].pid)
    return [main, *main.children(recursive=True)]


def train_while(rank: int, world: int, config: RunConfig) -> tuple[list[int], list[str]]:
    """Train with a server of the run's own; disturb it step after step. Rank 0 returns what it did."""
    done: list[str] = []

    def prepare(run: Any) -> None:
        if rank == 0:
            disturb_sampling(run, done, {1: kill, 2: freeze})
            kill_in_sync(run, done, 3)

    return _train(config, prepare), done


def disturb_sampling(run: Any, done: list[str], faults: dict[int, Callable[[Any], str]]) -> None:
    """In each of these steps, disturb when a few responses have arrived and others have not."""
    engine = run.parts.sampling._engine
    noted, seen, waiting = engine._on_finished, Counter(), dict(faults)

    def on_finished(url: str) -> None:
        noted(url)
        seen[run.step] += 1
        if seen[run.step] == 3 and run.step in waiting:
            done.append(waiting.pop(run.step)(run))

    engine._on_finished = on_finished


def kill(run: Any) -> str:
    process = serving_processes(run)[0]
    process.kill()
    return f"killed {process.pid}"


def freeze(run: Any) -> str:
    """Stop every process of the server: connections stay open, nothing answers."""
    frozen = serving_processes(run)
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    # The signal is on its way for a moment.
    deadline = time.monotonic() + 10
    while (
        any(process.status() != psutil.STATUS_STOPPED for process in frozen) and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    return "frozen: " + " ".join(str(process.status() == psutil.STATUS_STOPPED) for process in frozen)


def kill_in_sync(run: Any, done: list[str], step: int) -> None:
    """Kill the server when the first bucket of that step's weights has been sent to it."""
    transport = run.parts.publisher._sync._transport
    send, killed = transport.send, []

    def disturbed(filled: Any) -> Any:
        sending = send(filled)
        if run.step == step and not killed:
            killed.append(kill(run))
            done.extend(killed)
        return sending

    transport.send = disturbed


@pytest.mark.slow
def test_a_lost_server_comes_back_with_the_current_weights(tmp_path: Path) -> None:
    """Killed while sampling, frozen while sampling, killed in a synchronisation: one after the other.

    The run ends with every rollout accounted for, sampled from the weights that it should be.
    """
    config = config_for(
        tmp_path,
        "training.steps=5",
        "rollout.sglang.hang_timeout_s=15",
        "rollout.sync.timeout_s=60",
        "rollout.sync.bucket_mib=1",
        "rollout.sync.verify_every=0",
    )
    results = run_ranks(2, train_while, config, timeout=500)
    counts = [counted for counted, _ in results]
    first, frozen, second = results[0][1]
    assert first.startswith("killed") and second.startswith("killed") and first != second
    assert "frozen: True" in frozen and "False" not in frozen
    check_accounted_for(config, counts)
    log = (Path(config.output_dir) / "engine" / "sglang-0.log").read_text()
    assert log.count("==== ") == 4, "the server was started once more after each fault"
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
