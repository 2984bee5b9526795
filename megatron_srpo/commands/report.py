"""Write the report page of a run or a self-play (report.html in its folder), or compare several.

Works on runs that are still going, were stopped, or were copied from elsewhere. Runs that differ only by seed
are taken together. The questions of a self-play are measured anew (docs/self_play.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_srpo.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo report``."""
    parser.add_argument(
        "run_dir", nargs="+", help="folder of a run or a self-play (its output_dir); several are compared"
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="where the comparison of several goes: of runs, the page (default: comparison.html); of "
        "self-plays, the folder (default: comparison)",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="names for several self-plays, one each; equal ones are seeds of one setting (default: those "
        "that differ only by seed are taken together)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from megatron_srpo.report.self_play_data import is_self_play

    folders = list({Path(folder).resolve(): folder for folder in arguments.run_dir}.values())
    kinds = [is_self_play(folder) for folder in folders]
    if any(kinds) and not all(kinds):
        other = folders[kinds.index(False)]
        raise DataError(f"{other} is no self-play, others are; compare runs and self-plays apart")
    if len(folders) == 1 and arguments.out:
        raise ConfigError(
            f"--out {arguments.out} is for the comparison of several runs; name several, or leave it "
            "out: the page of a single run lies in its folder"
        )
    _check_labels(arguments.labels, folders, self_plays=all(kinds))
    if all(kinds):
        _self_plays(folders, arguments.labels, arguments.out)
    else:
        _runs(folders, arguments.out)
    return 0


def _check_labels(labels: Sequence[str] | None, folders: Sequence[str], *, self_plays: bool) -> None:
    if labels is None:
        return
    if not self_plays or len(folders) == 1:
        raise ConfigError("--labels names several self-plays; leave it out")
    if len(labels) != len(folders):
        raise ConfigError(f"--labels has {len(labels)} names for {len(folders)} self-plays; give one each")


def _runs(folders: Sequence[str], out: str | None) -> None:
    from megatron_srpo.report.compare import write_comparison_page
    from megatron_srpo.report.html import write_report

    for folder in folders:
        if not (Path(folder) / "metrics.jsonl").is_file():
            raise DataError(f"{folder} holds no metrics.jsonl; name the output_dir of a run")
    if len(folders) > 1:
        print(write_comparison_page(folders, out or "comparison.html"))
    else:
        print(write_report(folders[0]))


def _self_plays(folders: Sequence[str], labels: Sequence[str] | None, out: str | None) -> None:
    from megatron_srpo.report.self_play_compare import group_self_plays, write_self_play_comparison
    from megatron_srpo.selfplay.report import write_self_play_report

    pages = [write_self_play_report(folder) for folder in folders]
    if len(folders) == 1:
        print(pages[0])
        return
    paths = write_self_play_comparison(group_self_plays(folders, labels), out or "comparison")
    print("\n".join(f"{kind}: {path}" for kind, path in paths.items()))
