"""The benchmark tools: same work on both sides, arithmetic of ratios, and every refusal. Nothing is timed."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError, UserError
from tests.conftest import REPOSITORY
from tools.benchmarks import bench_trl, our_side, trl_side, workload
from tools.benchmarks.lane import BenchmarkError, Lane, LaneSpec, RankFacts, combine, digest, environment

CONFIG = str(REPOSITORY / "examples" / "quickstart.yaml")
MODEL = f"model.path={REPOSITORY / 'examples' / 'models' / 'qwen3-tiny'}"
SMALL = (
    MODEL,
    "algorithm.name=grpo",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=2",
    "rollout.max_response_tokens=8",
    "reward.workers=1",
    *(f"data.train.{source}.size=20" for source in range(3)),
)


def config(*overrides: str) -> RunConfig:
    return workload.benchmark_config(CONFIG, [*SMALL, *overrides])


def record(wall: float = 2.0, tokens: int = 100, **changes: Any) -> dict[str, Any]:
    values = {
        "wall": wall,
        "processor": wall / 2,
        "phases": {"generate": wall / 4, "reward": 0.0, "train": 3 * wall / 4},
        "prompts": "abc",
        "prompt_count": 4,
        "responses": 8,
        "response_tokens": tokens,
    }
    return {**values, **changes}


# --- the work --------------------------------------------------------------------------------------------


def test_the_common_settings_switch_off_what_is_not_compared() -> None:
    chosen = config()
    assert chosen.data.eval == ()
    assert not chosen.evaluation.before and not chosen.evaluation.after and chosen.evaluation.every == 0
    assert not chosen.checkpoint.export_hf and not chosen.checkpoint.at_end and chosen.checkpoint.every == 0
    assert chosen.optimizer.warmup_steps == 0 and chosen.optimizer.schedule == "constant"


def test_overrides_win_over_the_common_settings() -> None:
    assert config("optimizer.learning_rate=0.5").optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    "override",
    [
        "training.prompts_per_mini_batch=2",
        "algorithm.policy.dual_clip=3.0",
        "algorithm.policy.kl_coefficient=0.1",
    ],
)
def test_settings_without_a_counterpart_are_refused(override: str) -> None:
    with pytest.raises(BenchmarkError, match=override.split("=")[0].rpartition(".")[2]):
        config(override)


def test_a_wrong_key_is_the_configs_own_error() -> None:
    with pytest.raises(ConfigError, match="learning_rat"):
        config("optimizer.learning_rat=1")


@pytest.fixture(scope="module")
def work() -> workload.Workload:
    return workload.make_workload(config(), steps=3)


def test_the_workload_is_what_the_training_loop_takes(work: workload.Workload, tmp_path: Path) -> None:
    """Reference: the prompts that an open run hands out, rendered by the run itself."""
    import torch.distributed as dist

    from megatron_srpo.session.build import open_run

    def ids(prompts: list[Any]) -> list[str]:
        return [item.prompt.id for item in prompts]

    assert not dist.is_initialized()
    chosen = dataclasses.replace(config("parallel.tensor=1"), output_dir=str(tmp_path))
    with open_run(chosen, resume=False) as run:
        for step, batch in enumerate(work.batches):
            run.step = step
            assert ids(run.prompts_of(run.step)) == [prompt.id for prompt in batch]
    from megatron_srpo.model.megatron_core import parallel_state

    parallel_state.destroy_model_parallel()


def test_the_data_set_of_trl_keeps_order_and_messages(work: workload.Workload) -> None:
    rows = trl_side.dataset_rows(work.batches)
    assert [(row["step"], row["place"]) for row in rows] == [(s, p) for s in range(3) for p in range(4)]
    for row in rows:
        assert tuple(row["prompt"]) == work.batches[row["step"]][row["place"]].messages
    assert len({prompt.id for batch in work.batches for prompt in batch}) == 12, "a prompt came twice"


def test_both_sides_render_a_prompt_to_the_same_tokens(work: workload.Workload) -> None:
    """TRL renders with the tokenizer's chat template and our thinking switch; the loop with data.chat."""
    from transformers import AutoTokenizer

    from megatron_srpo.data.chat import render_prompt

    tokenizer = AutoTokenizer.from_pretrained(work.config.model.path)
    settings = trl_side.trl_settings(work.config, 3, 1, 8)
    for prompt in work.batches[0]:
        theirs = tokenizer.apply_chat_template(
            [dict(message) for message in prompt.messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **settings["chat_template_kwargs"],
        )["input_ids"]
        assert theirs == list(render_prompt(tokenizer, prompt.messages, work.config.data.thinking))


def _named(name: str, **changes: Any) -> Any:
    return dataclasses.replace(config().algorithm, name=name, **changes)


def test_the_digest_depends_on_prompts_and_places_not_on_the_order_of_arrival() -> None:
    prompts = [(0, (1, 2)), (1, (3,)), (2, (4, 5))]
    assert digest(prompts) == digest(prompts[::-1])
    assert digest(prompts) != digest([(1, (1, 2)), (0, (3,)), (2, (4, 5))])
    assert digest(prompts) != digest([(0, (1, 2)), (1, (3,)), (2, (4, 6))])
    assert digest(prompts) != digest(prompts[:2])


def test_the_same_work_passes() -> None:
    workload.check_same_work({"a": [record(), record()], "b": [record(9.0, 77), record()]})


@pytest.mark.parametrize("key, value", [("prompts", "xyz"), ("prompt_count", 3), ("responses", 7)])
def test_different_work_is_refused_with_step_and_lane(key: str, value: Any) -> None:
    records = {"ours": [record(), record()], "TRL": [record(), record(**{key: value})]}
    with pytest.raises(BenchmarkError, match=rf"step 2: {key} is .* for ours but {value} for TRL"):
        workload.check_same_work(records)


def test_a_lane_that_made_fewer_steps_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="ours made 2 steps, TRL made 1"):
        workload.check_same_work({"ours": [record(), record()], "TRL": [record()]})


# --- TRL's settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world, micro, accumulation", [(1, 8, 1), (1, 4, 2), (2, 4, 1), (2, 1, 4)])
def test_the_batch_is_the_same_however_it_is_cut(world: int, micro: int, accumulation: int) -> None:
    settings = trl_side.trl_settings(config(), 5, world, micro)
    assert settings["gradient_accumulation_steps"] == accumulation
    assert (
        settings["per_device_train_batch_size"] * accumulation * world == config().rollout.responses_per_step
    )


def test_a_micro_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"8 responses .* micro-batches of 3 on 1 .* divides 8"):
        trl_side.check_micro_batch(8, 1, 3)


def test_settings_follow_the_run_configuration() -> None:
    chosen = config("rollout.temperature=0.7", "optimizer.weight_decay=0.3", "algorithm.policy.clip_high=0.5")
    settings = trl_side.trl_settings(chosen, 5, 1, 8)
    assert settings["temperature"] == 0.7
    assert settings["weight_decay"] == 0.3
    assert settings["epsilon_high"] == 0.5
    assert settings["learning_rate"] == chosen.optimizer.learning_rate
    assert settings["max_completion_length"] == 8
    assert settings["num_generations"] == 2
    assert settings["beta"] == 0.0 and settings["num_iterations"] == 1
    assert not settings["gradient_checkpointing"] and not settings["bf16"]


def test_the_distillation_settings_follow_too() -> None:
    distillation = dataclasses.replace(config().algorithm.distillation, alpha=0.25, top_k=7, tail=False)
    chosen = dataclasses.replace(config(), algorithm=_named("sdpo", distillation=distillation))
    settings = trl_side.trl_settings(chosen, 5, 1, 8)
    assert settings["distillation_alpha"] == 0.25
    assert settings["distillation_topk"] == 7 and settings["distillation_mode"] == "topk_logits"
    assert settings["distillation_add_tail"] is False
    assert settings["teacher_update_rate"] == chosen.teacher.ema_rate
    assert settings["success_reward_threshold"] == chosen.algorithm.success_threshold


def test_the_full_vocabulary_needs_no_top_k() -> None:
    distillation = dataclasses.replace(config().algorithm.distillation, vocabulary="full")
    chosen = dataclasses.replace(config(), algorithm=_named("sdpo", distillation=distillation))
    settings = trl_side.trl_settings(chosen, 5, 1, 8)
    assert settings["distillation_mode"] == "full_logits" and settings["distillation_topk"] is None


def test_an_algorithm_without_a_trainer_in_trl_is_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"name = srpo has no TRL trainer; compare one of grpo, sdpo"):
        trl_side.trl_settings(dataclasses.replace(config(), algorithm=_named("srpo")), 5, 1, 8)


def test_a_teacher_without_a_counterpart_is_refused() -> None:
    teacher = dataclasses.replace(config().teacher, mode="trust_region")
    chosen = dataclasses.replace(config(), algorithm=_named("sdpo"), teacher=teacher)
    with pytest.raises(BenchmarkError, match=r"teacher\.mode = trust_region .* ema, live or frozen"):
        trl_side.trl_settings(chosen, 5, 1, 8)


@pytest.mark.parametrize("algorithm", ["grpo", "sdpo"])
def test_trl_knows_every_setting(algorithm: str, tmp_path: Path) -> None:
    """TRL's own config classes take them all (a renamed field is found here, not in the middle of a run)."""
    pytest.importorskip("trl", reason="TRL is not installed (make install-bench)")
    module, name = trl_side.TRAINERS[algorithm]
    settings = trl_side.trl_settings(dataclasses.replace(config(), algorithm=_named(algorithm)), 5, 1, 8)
    made = getattr(importlib.import_module(module), f"{name}Config")(**settings, output_dir=str(tmp_path))
    assert made.generation_batch_size == config().rollout.responses_per_step
    assert made.steps_per_generation == made.gradient_accumulation_steps
    assert not made.bf16 and not made.gradient_checkpointing


def test_a_missing_trl_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="TRL is not installed; install it with `make install-bench`"):
        trl_side.require_trl()


def test_the_command_reports_a_missing_trl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench_trl.main([]) == 2
    assert "make install-bench" in capsys.readouterr().err


# --- what the lanes observe ------------------------------------------------------------------------------


def test_sampling_is_observed_by_groups_and_ranks() -> None:
    log = trl_side.StepLog(samples=2, rank=1)
    ids = [[1, 2], [1, 2], [3], [3]]
    assert log.generating(lambda prompts, extra: (len(prompts), extra))(ids, "x") == (4, "x")
    assert log.facts.prompts == [(2, (1, 2)), (3, (3,))], "rank 1 of two has places 2 and 3"


def test_samples_that_do_not_lie_side_by_side_are_refused() -> None:
    log = trl_side.StepLog(samples=2, rank=0)
    with pytest.raises(BenchmarkError, match="side by side"):
        log.generating(lambda prompts: None)([[1], [2], [1], [2]])


def test_what_is_neither_sampling_nor_reward_is_training() -> None:
    log = trl_side.StepLog(samples=2, rank=0)
    log.facts.phases.update(generate=3.0, reward=0.5)
    assert log.take(10.0).phases == {"generate": 3.0, "reward": 0.5, "train": 6.5}
    assert log.take(1.0).phases == {"generate": 0.0, "reward": 0.0, "train": 1.0}, "it starts anew"


def test_the_reward_is_the_verifiers_and_counts_tokens(work: workload.Workload) -> None:
    from megatron_srpo.rewards.registry import load_verifier
    from megatron_srpo.rewards.scoring import score_response

    log = trl_side.StepLog(samples=2, rank=0)
    prompt = work.batches[1][2]
    texts = [f"Answer: {prompt.answer}", "Answer: certainly wrong"]
    values = trl_side.make_reward(work, log)(
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[5, 6, 7], [8]],
        step=[1, 1],
        place=[2, 2],
        prompts=None,
    )
    verifier = load_verifier(prompt.task)
    expected = [score_response(verifier, prompt, text, work.config.reward).value for text in texts]
    assert values == expected and values[0] > values[1]
    assert (log.facts.responses, log.facts.response_tokens) == (2, 4)


def fake_run(leader: bool, dp_rank: int) -> Any:
    groups = types.SimpleNamespace(
        is_leader=leader, dp_rank=dp_rank, replica=types.SimpleNamespace(rank=lambda: 0 if leader else 1)
    )
    phases = {"generate": 1.0, "reward": 2.0, "score": 3.0, "teacher": 4.0, "update": 5.0, "sync": 6.0}
    return types.SimpleNamespace(
        recorder=types.SimpleNamespace(seconds=dict(phases)),
        groups=groups,
        row={"tokens/response": 50.0},
        config=config(),
    )


@pytest.mark.parametrize(
    "leader, dp_rank, counted",
    [(True, 0, (2, 4, 50)), (False, 0, (0, 0, 0)), (True, 1, (2, 4, 0))],
)
def test_each_replica_counts_its_prompts_once(leader: bool, dp_rank: int, counted: tuple[int, ...]) -> None:
    seen = [types.SimpleNamespace(place=0, tokens=(1,)), types.SimpleNamespace(place=2, tokens=(2,))]
    run = fake_run(leader, dp_rank)
    facts = our_side.step_facts(run, seen)
    assert (len(facts.prompts), facts.responses, facts.response_tokens) == counted
    assert facts.phases == {"generate": 7.0, "reward": 2.0, "train": 12.0}
    assert not run.recorder.seconds, "the next step's clocks start at zero"


def test_the_ranks_of_a_lane_add_up() -> None:
    ranks = [
        RankFacts({"generate": 1.0}, [(0, (1,)), (2, (3,))], 4, 30, processor=1.5),
        RankFacts({"generate": 9.0}, [(1, (2,))], 2, 12, processor=2.0),
    ]
    joined = combine(ranks, wall=4.0)
    assert joined["processor"] == 3.5
    assert (joined["responses"], joined["response_tokens"], joined["prompt_count"]) == (6, 42, 3)
    assert joined["phases"] == {"generate": 1.0}
    assert joined["prompts"] == digest([(0, (1,)), (1, (2,)), (2, (3,))])


# --- ratios ----------------------------------------------------------------------------------------------


def test_a_ratio_is_seconds_per_token_of_theirs_over_ours() -> None:
    theirs = [record(8.0, 100), record(9.0, 300)]
    ours = [record(2.0, 50), record(3.0, 100)]
    assert bench_trl.ratios(theirs, ours, "wall") == pytest.approx([0.08 / 0.04, 0.03 / 0.03])
    assert bench_trl.phase_ratio(theirs, ours, "train") == pytest.approx(1.5)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 10_000)), min_size=1, max_size=6),
    st.floats(0.1, 10),
)
def test_ratios_scale_with_time_and_not_with_tokens(steps: list[tuple[float, int]], factor: float) -> None:
    ours = [record(wall, tokens) for wall, tokens in steps]
    slower = [record(wall * factor, tokens) for wall, tokens in steps]
    longer = [record(wall * factor, tokens * 7) for wall, tokens in steps]
    assert bench_trl.ratios(slower, ours, "wall") == pytest.approx([factor] * len(steps))
    assert bench_trl.ratios(longer, ours, "wall") == pytest.approx([factor / 7] * len(steps))


def test_rounds_are_paired() -> None:
    with pytest.raises(ValueError):
        bench_trl.ratios([record()], [record(), record()], "wall")


def test_the_table_names_every_lane_and_its_ratio() -> None:
    lanes = {"ours GRPO": [record(2.0, 100)] * 3, "TRL GRPO": [record(5.0, 100)] * 3}
    _, _, ours, theirs = bench_trl.table(lanes)
    assert ours.startswith(
        "| ours GRPO | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) | 0.50 / 0.00 / 1.50 | 100 | 50 |"
    )
    assert "**2.50 (2.50 to 2.50)**" in ours
    assert theirs.endswith("| 1 | 1 | 1 |")


# --- the command -----------------------------------------------------------------------------------------


def test_trl_comes_last_and_every_lane_has_its_own_name() -> None:
    for layout in ("1-core", "2-cores"):
        for algorithm in ("grpo", "sdpo"):
            lanes = bench_trl.contestants(algorithm, layout)
            assert lanes[-1].side == "trl_side" and all(lane.side == "our_side" for lane in lanes[:-1])
            assert len({lane.name for lane in lanes}) == len(lanes)
            assert len({lane.ranks for lane in lanes}) == 1, "the same cores for all"
    names = [lane.name for lane in bench_trl.contestants("grpo", "2-cores")]
    assert names == ["ours GRPO, TP 2", "ours GRPO, DP 2", "TRL GRPO, 2 processes"]
    assert "ours SRPO" in [lane.name for lane in bench_trl.contestants("sdpo", "1-core")]


def test_lanes_get_the_users_overrides_but_their_own_layout(tmp_path: Path) -> None:
    arguments = bench_trl.parse(["parallel.tensor=8", "seed=7", "--config", CONFIG])
    spec = bench_trl.lane_spec(bench_trl.Contestant("our_side", "sdpo", 1, 1), arguments, tmp_path)
    chosen = workload.benchmark_config(spec.config, [*spec.overrides, MODEL])
    assert (chosen.seed, chosen.parallel.tensor, chosen.algorithm.name) == (7, 1, "sdpo")


@pytest.mark.parametrize("bad", [["--steps", "0"], ["--warm-up", "-1"], ["--trl-micro-batch", "0"]])
def test_impossible_counts_are_refused(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_trl.parse(bad)
    assert bad[0] in capsys.readouterr().err


def test_too_few_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_trl.os, "sched_getaffinity", lambda pid: {3})
    assert bench_trl.available_cores(1) == (3,)
    with pytest.raises(
        BenchmarkError, match="2 cores are needed, 1 are available; leave out --layouts 2-cores"
    ):
        bench_trl.available_cores(2)


def test_a_micro_batch_is_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    arguments = bench_trl.parse(["--config", CONFIG, MODEL, "--trl-micro-batch", "7", "--layouts", "1-core"])
    with pytest.raises(BenchmarkError, match="micro-batches of 7"):
        bench_trl.check(arguments)


# --- a lane as a process ---------------------------------------------------------------------------------

FAKE_SIDE = """
import sys
from tools.benchmarks.lane import Gate, LaneSpec, RankFacts
spec = LaneSpec.load(sys.argv[1])
gate = Gate(spec)
gate.ready({"threads": spec.threads})
for step in range(spec.steps):
    gate.open()
    {work}
    gate.close(RankFacts({"generate": 0.0}, [(0, (step, 5))], 2, 10 + step))
"""


@dataclasses.dataclass(frozen=True)
class ScriptedSpec(LaneSpec):
    """A lane whose side is a script of the test."""

    work: str = "pass"

    def command(self, path: Path) -> list[str]:
        script = path.with_name("side.py")
        script.write_text(FAKE_SIDE.replace("{work}", self.work))
        tree = dataclasses.asdict(self)
        del tree["work"]
        path.write_text(json.dumps(tree))
        return [sys.executable, str(script), str(path)]


@contextmanager
def lane(
    folder: Path, monkeypatch: pytest.MonkeyPatch, work: str = "pass", timeout: float = 60
) -> Iterator[Lane]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    spec = ScriptedSpec(
        "fake", "none", "x.yaml", ("a=1",), steps=2, control=str(folder / "control"), work=work
    )
    started = Lane(spec, folder, timeout)
    try:
        yield started
    finally:
        started.stop()
        assert started.process.poll() is not None, "the process outlived its lane"


def test_a_lane_steps_when_told_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lane(tmp_path, monkeypatch) as running:
        running.wait_ready()
        assert running.settings == {"threads": 1}
        first, second = running.step(), running.step()
    assert running.records == [first, second]
    assert (first["response_tokens"], second["response_tokens"]) == (10, 11)
    assert first["prompts"] == digest([(0, (0, 5))]) != second["prompts"]
    assert first["wall"] >= 0 and first["processor"] >= 0


def test_the_processors_time_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that computes for a while shows more processor seconds than one that sleeps (10 ms ticks)."""
    busy = "__import__('time').sleep(0.3) if step else [i * i for i in range(3_000_000)]"
    with lane(tmp_path, monkeypatch, busy) as running:
        running.wait_ready()
        computing, sleeping = running.step(), running.step()
    assert computing["processor"] > sleeping["processor"] + 0.02


def test_a_lane_that_dies_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lane(tmp_path, monkeypatch, "raise SystemExit('no more prompts')") as running:
        running.wait_ready()
        with pytest.raises(BenchmarkError, match=r"fake: (?s:.*)no more prompts"):
            running.step()


def test_a_lane_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lane(tmp_path, monkeypatch, "__import__('time').sleep(600)") as running:
        running.wait_ready()
        running.timeout = 1.0
        with pytest.raises(BenchmarkError, match="said nothing for 1 s"):
            running.step()


def test_several_ranks_are_started_by_torchrun(tmp_path: Path) -> None:
    spec = LaneSpec("two", "trl_side", "x.yaml", (), 1, "c", ranks=2)
    command = spec.command(tmp_path / "spec.json")
    assert "torch.distributed.run" in command and command[command.index("--nproc-per-node") + 1] == "2"
    assert "torch.distributed.run" not in dataclasses.replace(spec, ranks=1).command(tmp_path / "spec.json")


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec = LaneSpec("n", "our_side", "c.yaml", ("a=1", "b=2"), 3, "s", 2, 1, (0, 1), 16)
    spec.save(tmp_path / "spec.json")
    assert LaneSpec.load(str(tmp_path / "spec.json")) == spec


def test_a_lane_has_its_threads_and_no_network() -> None:
    made = environment(threads=3)
    assert made["OMP_NUM_THREADS"] == "3" and made["HF_HUB_OFFLINE"] == "1"


def test_benchmark_errors_are_user_errors() -> None:
    assert issubclass(BenchmarkError, UserError)


# --- the real thing, small -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "sdpo"])
def test_both_sides_do_the_same_work(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of the real loop and of TRL's real trainer; `measure` compares what both were given."""
    pytest.importorskip("trl", reason="TRL is not installed (make install-bench)")
    output = tmp_path / "records.json"
    command = ["--config", CONFIG, *SMALL, "--algorithms", algorithm, "--layouts", "1-core"]
    options = ["--steps", "1", "--warm-up", "1", "--trl-micro-batch", "4", "--output", str(output)]
    assert bench_trl.main([*command, *options]) == 0, capsys.readouterr().err
    (result,) = json.loads(output.read_text())["results"]
    names = [who.name for who in bench_trl.contestants(algorithm, "1-core")]
    assert list(result["records"]) == names
    for steps in result["records"].values():
        assert [step["prompt_count"] for step in steps] == [4]
        assert [step["responses"] for step in steps] == [8]
        assert all(8 <= step["response_tokens"] <= 8 * 8 for step in steps)
        assert all(set(step["phases"]) == {"generate", "reward", "train"} for step in steps)
    assert result["settings"][names[-1]]["gradient_accumulation_steps"] == 2
    assert f"| {names[0]} |" in capsys.readouterr().out


def test_argument_namespaces_are_what_measure_needs() -> None:
    arguments = bench_trl.parse([])
    assert isinstance(arguments, argparse.Namespace)
    needed: Callable[[str], Any] = arguments.__dict__.__getitem__
    assert (needed("steps"), needed("warm_up"), needed("algorithms")) == (5, 1, ["grpo", "sdpo"])
