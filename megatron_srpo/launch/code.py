"""Which code a job runs: a commit that travels with it, or what is installed there."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from megatron_srpo.config.launch import CodeConfig
from megatron_srpo.errors import LaunchError

_SHOWN = 10


def packaged_commit(config: CodeConfig, folder: Path, say: Callable[[str], None]) -> str | None:
    """Decide whether code travels with the job; return the commit that does, or None.

    Args:
        folder: the folder of the launch.
        say: is given a warning about changes that stay behind.

    Raises:
        LaunchError: git is wanted and ``folder`` is in no work tree, or there are changes that would not
            travel and ``uncommitted`` is ``refuse``.
    """
    if config.package == "none":
        return None
    root = _git(folder, "rev-parse", "--show-toplevel")
    if root is None or (config.package == "auto" and not (Path(root) / "megatron_srpo").is_dir()):
        if config.package == "git":
            raise LaunchError(
                f"launch.code.package = 'git', but {folder} is in no git work tree; launch from one, or set "
                "launch.code.package=none to run what is installed there"
            )
        return None
    commit = _git(Path(root), "rev-parse", "HEAD")
    if commit is None:
        raise LaunchError(f"{root} has no commit yet; commit the code, or set launch.code.package=none")
    _check_changes(config, Path(root), commit, say)
    return commit


def _check_changes(config: CodeConfig, root: Path, commit: str, say: Callable[[str], None]) -> None:
    changed = [line for line in (_git(root, "status", "--porcelain") or "").splitlines() if line]
    if not changed:
        return
    shown = ", ".join(line[2:].strip() for line in changed[:_SHOWN])
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    text = f"{len(changed)} changed files are not committed and do not travel with the job: {shown}{more}"
    if config.uncommitted == "refuse":
        raise LaunchError(
            f"{text}; commit them, or launch commit {commit[:10]} as it is with launch.code.uncommitted=warn"
        )
    say(f"warning: {text}; the job runs commit {commit[:10]}")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None when it refuses or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
