"""Checkpoints: everything comes back, in every layout that the model allows, or an error says why not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import OptimizerConfig, TeacherConfig
from megatron_srpo.errors import CheckpointError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.megatron_core import dist_checkpointing
from megatron_srpo.model.parallel import initialize_parallel
from megatron_srpo.training.checkpoint import (
    checkpoint_folder,
    finished_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from megatron_srpo.training.trainer import Trainer
from megatron_srpo.weights.gather import hf_tensors
from megatron_srpo.weights.megatron_checkpoint import load_megatron
from tests.model.tiny import EXPERTS, write_random_qwen3
from tests.ranks import RankFailure, run_ranks
from tests.training.harness import (
    VOCAB_MULTIPLE,
    Layout,
    fixed_rollouts,
    full_weights,
    make_trainer,
    replica_rollouts,
    train_step,
)

SRPO = AlgorithmConfig(name="srpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    sizes = {"num_hidden_layers": 4, "num_key_value_heads": 4}  # four: enough for two stages of two chunks
    return str(write_random_qwen3(path, **sizes, tie_word_embeddings=True))


def two_steps(
    rank: int,
    world: int,
    folder: str,
    layout: Layout,
    root: Path,
    resume: bool,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train two steps with a checkpoint between them, or only the second one from that checkpoint."""
    groups = layout.initialize()
    trainer = make_trainer(folder, groups, SRPO, TeacherConfig(ema_rate=0.3), dtype=dtype, layout=layout)
    progress: dict[str, Any] = {}
    if resume:
        torch.manual_seed(99)
        progress = load_checkpoint(checkpoint_folder(root, 1), trainer)
    else:
        torch.manual_seed(7)
        train_step(trainer, replica_rollouts(fixed_rollouts(seed=3), layout, groups))
        save_checkpoint(root, 1, trainer, {"note": "kept"}, keep=2)
    draw = torch.rand(3)
    assert trainer.teacher.average is not None and trainer.teacher.copy is not None
    kept = [*trainer.teacher.average.held, *trainer.teacher.copy.parameters()]
    average = [value.detach().clone() for value in kept]
    result = train_step(trainer, replica_rollouts(fixed_rollouts(seed=4), layout, groups))
    assert result is not None
    return {
        "sums": result.sums,
        "grad_norm": result.optimizer.grad_norm,
        "learning_rate": result.optimizer.learning_rate,
        "weights": full_weights(trainer, folder),
        "average": average,
        "draw": draw,
        "progress": progress,
    }


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        (Layout(), torch.float32),
        (Layout(tp=2), torch.float32),
        (Layout(pp=2), torch.float32),
        (Layout(pp=2, virtual=2, distributed=True), torch.bfloat16),
        (Layout(cp=2, distributed=True), torch.float32),
        (Layout(distributed=True, overlap=True), torch.bfloat16),
        (Layout(), torch.bfloat16),
    ],
)
def test_the_same_layout_goes_on_bit_for_bit(
    folder: str, tmp_path: Path, layout: Layout, dtype: torch.dtype
) -> None:
    world = layout.tp * layout.pp * layout.cp
    whole = run_ranks(world, two_steps, folder, layout, tmp_path, False, dtype)
    again = run_ranks(world, two_steps, folder, layout, tmp_path, True, dtype)
    for one, other in zip(whole, again, strict=True):
        assert other["progress"] == {"step": 1, "note": "kept"}
        assert one["sums"] == other["sums"]
        assert one["grad_norm"] == other["grad_norm"]
        assert one["learning_rate"] == other["learning_rate"]
        assert torch.equal(one["draw"], other["draw"])  # the random states came back
        assert all(torch.equal(a, b) for a, b in zip(one["average"], other["average"], strict=True))
        for name, tensor in one["weights"].items():
            assert torch.equal(other["weights"][name], tensor), name


@pytest.mark.parametrize(
    ("world", "before", "after"),
    [
        (1, Layout(), Layout(tp=2)),
        (2, Layout(tp=2, sequence=True), Layout(cp=2)),
        (2, Layout(distributed=True), Layout(tp=2, pp=2, distributed=True)),
        (4, Layout(tp=2, distributed=True), Layout(distributed=True)),
        (2, Layout(pp=2, virtual=2), Layout(pp=2, first=1)),
        (4, Layout(pp=2, first=3, distributed=True), Layout(pp=2, virtual=2, distributed=True)),
        (1, Layout(distributed=True), Layout(tp=2, pp=2, virtual=2, distributed=True)),
    ],
)
def test_another_layout_goes_on_with_the_same_step(
    folder: str, tmp_path: Path, world: int, before: Layout, after: Layout
) -> None:
    whole = run_ranks(world, two_steps, folder, before, tmp_path, False)[0]
    ranks = after.tp * after.pp * after.cp
    other = run_ranks(ranks, two_steps, folder, after, tmp_path, True)[0]
    # Two layouts differ by fp32 rounding; see test_layouts.py.
    assert other["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert other["sums"]["distill_loss"] == pytest.approx(whole["sums"]["distill_loss"], rel=1e-5)
    for name, tensor in whole["weights"].items():
        assert (other["weights"][name] - tensor).norm() / tensor.norm() < 1e-5, name


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("mixture"), **EXPERTS))


@pytest.mark.parametrize("distributed", [False, True])
def test_spread_experts_go_on_bit_for_bit(mixture: str, tmp_path: Path, distributed: bool) -> None:
    layout, dtype = Layout(ep=2, distributed=distributed), torch.bfloat16
    whole = run_ranks(2, two_steps, mixture, layout, tmp_path, False, dtype)
    again = run_ranks(2, two_steps, mixture, layout, tmp_path, True, dtype)
    for one, other in zip(whole, again, strict=True):
        assert one["sums"] == other["sums"] and one["grad_norm"] == other["grad_norm"]
        assert one["learning_rate"] == other["learning_rate"]
        assert all(torch.equal(a, b) for a, b in zip(one["average"], other["average"], strict=True))
        for name, tensor in one["weights"].items():
            assert torch.equal(other["weights"][name], tensor), name


@pytest.mark.parametrize(
    ("first", "second", "ranks"),
    [
        (Layout(), Layout(ep=2), (1, 2)),
        (Layout(ep=2), Layout(pp=2, ep=2), (2, 4)),
        (Layout(ep=4), Layout(), (4, 1)),
        (Layout(ep=2, distributed=True), Layout(distributed=True), (2, 1)),
        (Layout(distributed=True), Layout(ep=2, distributed=True), (1, 2)),
    ],
    ids=["ep1-ep2", "ep2-pp2ep2", "ep4-ep1", "ep2-ep1 distributed", "ep1-ep2 distributed"],
)
def test_experts_go_on_in_another_layout(
    mixture: str, tmp_path: Path, first: Layout, second: Layout, ranks: tuple[int, int]
) -> None:
    """The second step needs the first one's moments: without them its weights would differ by far more."""
    whole = run_ranks(ranks[0], two_steps, mixture, first, tmp_path, False)[0]
    other = run_ranks(ranks[1], two_steps, mixture, second, tmp_path, True)[0]
    assert other["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert other["learning_rate"] == whole["learning_rate"]
    for name, tensor in whole["weights"].items():
        # Adam's division by sqrt(v) amplifies rounding; a step from fresh moments differs by 1e-3 and more.
        assert (other["weights"][name] - tensor).norm() / tensor.norm() < 2e-5, name


@pytest.mark.parametrize(
    ("first", "second", "ranks", "experts"),
    [
        (Layout(distributed=True), Layout(distributed=True), (3, 1), False),
        (Layout(), Layout(tp=2), (1, 4), False),
        (Layout(tp=2, sequence=True), Layout(pp=2), (4, 4), False),
        (Layout(ep=2), Layout(), (4, 3), True),
        (Layout(), Layout(ep=2), (1, 4), True),
    ],
    ids=["dp3-one", "one-tp2dp2", "tp2dp2-pp2dp2", "ep2dp4-dp3", "one-ep2dp4"],
)
def test_a_shared_average_goes_on_in_another_layout(
    folder: str,
    mixture: str,
    tmp_path: Path,
    first: Layout,
    second: Layout,
    ranks: tuple[int, int],
    experts: bool,
) -> None:
    """bf16: parts of the average are cut elsewhere. What is saved again is what had been saved."""
    model, there, back = mixture if experts else folder, tmp_path / "there", tmp_path / "back"
    saved = run_ranks(ranks[0], save_bf16, model, first, None, there)[0]
    found = run_ranks(ranks[1], save_bf16, model, second, checkpoint_folder(there, 1), back)[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
    one, other = (run_ranks(1, read_averages, checkpoint_folder(root, 1))[0] for root in (there, back))
    assert one.keys() == other.keys() and all(value.dtype == torch.float32 for value in one.values())
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    # In fp32 there is more to keep than the teacher's bf16 weights say.
    assert any(not torch.equal(value, value.bfloat16().float()) for value in one.values())


def save_bf16(
    rank: int, world: int, folder: str, layout: Layout, source: Path | None, root: Path
) -> dict[str, torch.Tensor]:
    """Save after a step, or what was loaded; return the teacher's weights."""
    groups = layout.initialize()
    teacher = TeacherConfig(ema_rate=0.3)
    trainer = make_trainer(folder, groups, SRPO, teacher, dtype=torch.bfloat16, layout=layout)
    if source is None:
        # Twelve prompt groups: as many for each of two, three or four replicas.
        train_step(trainer, replica_rollouts(fixed_rollouts(groups=12), layout, groups))
    else:
        load_checkpoint(source, trainer)
    save_checkpoint(root, 1, trainer, {}, keep=1)
    assert trainer.teacher.copy is not None
    arch = Qwen3Architecture.from_hf_folder(folder)
    return {name: tensor.clone() for name, tensor in hf_tensors(trainer.teacher.copy, arch, groups)}


def read_averages(rank: int, world: int, path: Path) -> dict[str, torch.Tensor]:
    initialize_parallel(1, 1)
    found = dist_checkpointing.load_plain_tensors(str(path))
    return {name: tensor for name, tensor in found.items() if name.startswith("teacher.average.")}


@pytest.mark.parametrize("distributed", [False, True])
def test_another_run_begins_with_all_that_was_learnt(folder: str, tmp_path: Path, distributed: bool) -> None:
    """bf16, at a learning rate that moves few weights by a whole bf16 step: the optimizer knows more."""
    layout = Layout(tp=1, pp=1, distributed=distributed)
    saved = run_ranks(1, learn_a_little, folder, layout, tmp_path)[0]
    begun = run_ranks(1, begin_anew, folder, layout, checkpoint_folder(tmp_path, 1))[0]
    assert begun["masters"].keys() == saved["masters"].keys()
    for name, value in saved["masters"].items():
        assert torch.equal(begun["masters"][name], value)
    assert any(not torch.equal(one, one.bfloat16().float()) for one in begun["masters"].values())
    assert saved["largest moment"] > 0
    assert begun["largest moment"] == 0
    assert (saved["schedule"], begun["schedule"]) == (1, 0)


SLOW = OptimizerConfig(learning_rate=1e-5, warmup_steps=0)


def slow_trainer(folder: str, layout: Layout) -> Trainer:
    groups, optimizer = layout.initialize(), dataclasses.replace(SLOW, distributed=layout.distributed)
    return make_trainer(folder, groups, SRPO, dtype=torch.bfloat16, layout=layout, optimizer=optimizer)


def learn_a_little(rank: int, world: int, folder: str, layout: Layout, root: Path) -> dict[str, Any]:
    trainer = slow_trainer(folder, layout)
    train_step(trainer, fixed_rollouts())
    save_checkpoint(root, 1, trainer, {}, keep=1)
    return optimizer_contents(trainer)


def begin_anew(rank: int, world: int, folder: str, layout: Layout, path: Path) -> dict[str, Any]:
    trainer = slow_trainer(folder, layout)
    load_weights(path, trainer)
    return optimizer_contents(trainer)


def optimizer_contents(trainer: Trainer) -> dict[str, Any]:
    (part,) = trainer.optimizer.optimizer.chained_optimizers
    groups = part.optimizer.param_groups
    masters = [value.detach().clone() for group in groups for value in group["params"]]
    moments = [state[name] for state in part.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "masters": {str(number): value for number, value in enumerate(masters)},
        "largest moment": max(float(moment.abs().max()) for moment in moments),
        "schedule": trainer.optimizer.scheduler.num_steps,
    }


def test_the_policy_can_be_read_without_the_rest(folder: str, tmp_path: Path) -> None:
    """What ``tools/convert_hf.py export`` does with a training run's checkpoint, in another layout."""
    saved = run_ranks(1, save_after_a_step, folder, tmp_path)[0]
    read = run_ranks(2, read_policy, folder, checkpoint_folder(tmp_path, 1))[0]
    assert saved.keys() == read.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in saved.items())


def save_after_a_step(rank: int, world: int, folder: str, root: Path) -> dict[str, torch.Tensor]:
    trainer = make_trainer(folder, initialize_parallel(1, 1), SRPO)
    train_step(trainer, fixed_rollouts())
    save_checkpoint(root, 1, trainer, {}, keep=1)
    return full_weights(trainer, folder)


def read_policy(rank: int, world: int, folder: str, path: Path) -> dict[str, torch.Tensor]:
    groups = initialize_parallel(2, 1)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, torch.float32, VOCAB_MULTIPLE)
    load_megatron(model, path)
    return {name: tensor.clone() for name, tensor in hf_tensors(model, arch, groups)}


def test_only_the_newest_checkpoints_stay(folder: str, tmp_path: Path) -> None:
    run_ranks(1, save_three, folder, tmp_path)
    assert [step for step, _ in finished_checkpoints(tmp_path)] == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


def save_three(rank: int, world: int, folder: str, root: Path) -> None:
    trainer = make_trainer(folder, initialize_parallel(1, 1), SRPO)
    for step in (1, 2, 3):
        save_checkpoint(root, step, trainer, {}, keep=2)


def test_a_half_written_checkpoint_is_not_found(tmp_path: Path) -> None:
    (tmp_path / ".step_00000004.partial").mkdir()
    (tmp_path / "step_00000005").mkdir()  # without the file that is written last
    (tmp_path / "notes").mkdir()
    assert finished_checkpoints(tmp_path) == []
    assert finished_checkpoints(tmp_path / "absent") == []


def load_only(rank: int, world: int, folder: str, path: Path, mode: str) -> None:
    trainer = make_trainer(folder, initialize_parallel(1, 1), SRPO, TeacherConfig(mode=mode))
    load_checkpoint(path, trainer)


def test_an_unfinished_checkpoint_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailure, match=r"CheckpointError: .* is not a finished checkpoint"):
        run_ranks(1, load_only, folder, tmp_path, "ema")


def test_a_checkpoint_without_teacher_is_refused_by_a_run_with_one(folder: str, tmp_path: Path) -> None:
    run_ranks(1, save_without_teacher, folder, tmp_path)
    with pytest.raises(RankFailure, match=r"CheckpointError: .* does not fit this run"):
        run_ranks(1, load_only, folder, checkpoint_folder(tmp_path, 1), "ema")


def save_without_teacher(rank: int, world: int, folder: str, root: Path) -> None:
    trainer = make_trainer(folder, initialize_parallel(1, 1), SRPO, TeacherConfig(mode="live"))
    save_checkpoint(root, 1, trainer, {}, keep=1)


def test_a_folder_that_cannot_be_written_is_named(folder: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(RankFailure, match=CheckpointError.__name__):
        run_ranks(1, save_into, folder, blocked)


def save_into(rank: int, world: int, folder: str, root: Path) -> None:
    trainer = make_trainer(folder, initialize_parallel(1, 1), SRPO)
    save_checkpoint(root, 1, trainer, {}, keep=1)
