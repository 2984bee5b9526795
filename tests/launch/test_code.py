"""Which code travels with a job: real git work trees."""

import subprocess
from pathlib import Path

import pytest

from megatron_srpo.config.launch import CodeConfig
from megatron_srpo.errors import LaunchError
from megatron_srpo.launch.code import packaged_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree of this project's shape, with one commit."""
    git(tmp_path, "init", "-q")
    package = tmp_path / "megatron_srpo"
    package.mkdir()
    (package / "code.py").write_text("one = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_a_clean_tree_travels_by_its_commit(tree: Path) -> None:
    assert packaged_commit(CodeConfig(), tree, no_warning) == git(tree, "rev-parse", "HEAD")


def test_a_folder_within_the_tree_is_in_it(tree: Path) -> None:
    assert packaged_commit(CodeConfig(), tree / "megatron_srpo", no_warning) is not None


def test_changes_are_refused_by_name(tree: Path) -> None:
    (tree / "megatron_srpo" / "code.py").write_text("two = 2\n")
    (tree / "new file.py").write_text("")
    with pytest.raises(
        LaunchError, match=r"2 changed files.*megatron_srpo/code.py.*new file.py.*commit them"
    ):
        packaged_commit(CodeConfig(), tree, no_warning)


def test_changes_can_be_left_behind_with_a_warning(tree: Path) -> None:
    (tree / "megatron_srpo" / "code.py").write_text("two = 2\n")
    warnings: list[str] = []
    commit = packaged_commit(CodeConfig(uncommitted="warn"), tree, warnings.append)
    assert commit == git(tree, "rev-parse", "HEAD")
    assert "1 changed files" in warnings[0] and commit[:10] in warnings[0]


def test_ignored_files_are_no_changes(tree: Path) -> None:
    (tree / ".git" / "info" / "exclude").write_text("runs/\n")
    (tree / "runs").mkdir()
    (tree / "runs" / "x").write_text("")
    assert packaged_commit(CodeConfig(), tree, no_warning) is not None


def test_outside_a_work_tree_nothing_travels_unless_it_must(tmp_path: Path) -> None:
    assert packaged_commit(CodeConfig(), tmp_path, no_warning) is None
    with pytest.raises(LaunchError, match="is in no git work tree"):
        packaged_commit(CodeConfig(package="git"), tmp_path, no_warning)


def test_another_project_travels_only_when_asked(tree: Path) -> None:
    git(tree, "mv", "megatron_srpo", "mine")
    git(tree, "commit", "-qm", "moved")
    assert packaged_commit(CodeConfig(), tree, no_warning) is None
    assert packaged_commit(CodeConfig(package="git"), tree, no_warning) == git(tree, "rev-parse", "HEAD")


def test_a_tree_without_a_commit_is_told_what_to_do(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(LaunchError, match="has no commit yet"):
        packaged_commit(CodeConfig(package="git"), tmp_path, no_warning)


def test_none_means_none(tree: Path) -> None:
    (tree / "changed.py").write_text("")
    assert packaged_commit(CodeConfig(package="none"), tree, no_warning) is None
