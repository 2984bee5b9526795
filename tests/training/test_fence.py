"""Fencing tokens: the last to claim a run folder owns it, and everybody else finds out who does."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_srpo.errors import CheckpointError, FenceError
from megatron_srpo.training import fence
from megatron_srpo.training.fence import Fence, claim


def tokens(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "fence").iterdir())


def test_the_last_to_claim_owns_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = claim(tmp_path / "run")
    first.check()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    second = claim(tmp_path / "run")
    assert (first.name, second.name) == ("00000001", "00000002")
    assert second.held() and not first.held()
    said = json.loads((tmp_path / "run" / "fence" / "00000002").read_text())
    assert said["job"] == "77_2"
    with pytest.raises(FenceError) as refused:
        first.check()
    for what in ("token 00000002", f"host {said['host']}", f"pid {said['pid']}", "job 77_2", said["time"]):
        assert what in str(refused.value)


def test_nobody_gets_a_token_twice(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        fences = list(pool.map(lambda _: claim(tmp_path), range(40)))
    numbers = [fence.number for fence in fences]
    # A number whose turn has passed is left out.
    assert len(set(numbers)) == 40 and max(numbers) >= 40
    assert [fence.number for fence in fences if fence.held()] == [max(numbers)]


def test_a_number_that_was_taken_and_removed_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks, waits, and creates: meanwhile nine others came, and the first four tokens are gone."""
    for _ in range(9):
        claim(tmp_path)
    looks = iter([[1, 2]])
    really = fence._tokens
    monkeypatch.setattr(fence, "_tokens", lambda folder: next(looks, None) or really(folder))
    late = claim(tmp_path)
    assert late.number == 10 and late.held()
    assert tokens(tmp_path) == [f"{number:08d}" for number in range(6, 11)]


def test_old_tokens_go_and_numbers_never_come_back(tmp_path: Path) -> None:
    for _ in range(9):
        newest = claim(tmp_path)
    assert tokens(tmp_path) == [f"{number:08d}" for number in range(5, 10)]
    newest.check()
    (tmp_path / "fence" / "notes.txt").write_text("a stranger")
    assert claim(tmp_path).number == 10


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}', "\x00"])
def test_a_token_that_says_nothing_still_counts(tmp_path: Path, content: str) -> None:
    fence = claim(tmp_path)
    (tmp_path / "fence" / "00000002").write_text(content)  # its holder was killed before it wrote more
    with pytest.raises(FenceError, match=r"taken over by another process \(token 00000002\), so this one"):
        fence.check()


def test_a_folder_that_was_removed_or_changed_is_not_written_again(tmp_path: Path) -> None:
    fence = claim(tmp_path)
    (tmp_path / "fence" / "00000001").unlink()
    with pytest.raises(FenceError, match="has lost token 00000001"):
        fence.check()
    (tmp_path / "fence").rmdir()
    with pytest.raises(FenceError, match=r"fence cannot be read \(.*No such file"):
        fence.check()
    assert not fence.held() and not (tmp_path / "fence").exists()


def test_a_folder_that_another_process_made_anew_is_not_this_ones(tmp_path: Path) -> None:
    """Both hold number 1, each of its own folder."""
    first = claim(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    second = claim(tmp_path / "run")
    assert first.number == second.number
    assert second.held() and not first.held()
    with pytest.raises(FenceError, match="has lost token 00000001"):
        first.check()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"cannot write: .*file"):
        claim(tmp_path / "file")


def test_leftovers_of_former_holders_go(tmp_path: Path) -> None:
    for name in ("00000001.partial", "00000002.old.partial", "00000004.partial", "partial"):
        (tmp_path / f".step_00000020.{name}").mkdir()
    (tmp_path / "step_00000010").mkdir()
    (tmp_path / ".status.json.0.00000002.partial").write_text("{")
    (tmp_path / ".hidden").mkdir()
    Fence(tmp_path, 3).remove_leftovers(tmp_path)
    kept = [".hidden", ".step_00000020.00000004.partial", "step_00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    Fence(tmp_path, 3).remove_leftovers(tmp_path / "absent")
