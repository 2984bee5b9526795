"""Look into the memory of a self-play: the valid questions of its iterations, with labels and skills.

  megatron-srpo memory stats runs/self-play
  megatron-srpo memory show runs/self-play --iteration 3 --limit 50
  megatron-srpo memory search runs/self-play "How many apples are left?" --top 5
  megatron-srpo memory search runs/self-play apples --text

FOLDER is the self-play's output_dir, or a memory's own folder. Nothing in it is changed; the self-play may be
running. docs/self_play.md says what the memory is for.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_srpo import platform
from megatron_srpo.commands.common import positive_integer
from megatron_srpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.table import Table

    from megatron_srpo.selfplay.memory import MemoryBank
    from megatron_srpo.selfplay.memory_stats import MemoryStats
    from megatron_srpo.selfplay.types import Remembered, Skill

_BAR = 40
_CUT = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo memory``."""
    actions = parser.add_subparsers(dest="action", metavar="show | search | stats", required=True)
    show = actions.add_parser("show", help="list entries", description="List entries, oldest first.")
    search = actions.add_parser(
        "search",
        help="find the entries nearest to a question",
        description="Find the entries nearest to a question by its skill, measured as the self-play does it "
        "(its config.yaml says how; a coder's model is loaded), or those that contain a text.",
    )
    stats = actions.add_parser(
        "stats", help="count and measure", description="Count and measure the entries."
    )
    for action in (show, search, stats):
        action.add_argument("folder", type=Path, metavar="FOLDER", help="of the self-play, or of a memory")
        action.add_argument("--json", action="store_true", help="print JSON; texts are whole")
    search.add_argument("text", metavar="TEXT", help="a question; with --text, a part of one")
    search.add_argument("--text", dest="plain", action="store_true", help="search for TEXT as it stands")
    search.add_argument("--top", type=positive_integer, default=10, metavar="K", help="default 10")
    show.add_argument("--iteration", type=positive_integer, metavar="N", help="of this iteration alone")
    show.add_argument("--limit", type=positive_integer, default=20, metavar="N", help="default 20")
    for action in (show, search):
        action.add_argument("--code", action="store_true", help="show the code that was embedded, too")


def run(arguments: argparse.Namespace) -> int:
    """Show, search or measure; return the exit status."""
    from megatron_srpo.selfplay.memory import MemoryBank

    folder = find_bank(arguments.folder)
    actions = {"show": _show, "search": _search, "stats": _stats}
    try:
        actions[arguments.action](arguments, folder, MemoryBank.read(folder))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads, such as `head`, has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def find_bank(folder: Path) -> Path:
    """Return the folder of the bank that a folder is or holds.

    Raises:
        DataError: it holds none.
    """
    from megatron_srpo.selfplay.folders import MEMORY

    for candidate in (folder / MEMORY, folder):
        if (candidate / "settings.json").is_file():
            return candidate
    raise DataError(
        f"{folder} holds no memory (no {MEMORY}/settings.json); name the output_dir of a self-play that has "
        "measured skills"
    )


# -------------------- show


def _show(arguments: argparse.Namespace, folder: Path, bank: "MemoryBank") -> None:
    entries = bank.everything().entries
    if arguments.iteration is not None:
        if arguments.iteration not in bank.iterations:
            known = ", ".join(map(str, bank.iterations)) or "none yet"
            raise DataError(f"{folder} has no iteration {arguments.iteration}; it has: {known}")
        entries = [entry for entry in entries if entry.iteration == arguments.iteration]
    shown = entries[: arguments.limit]
    if arguments.json:
        _print_json([asdict(entry) for entry in shown])
        return
    caption = f"{len(shown)} of {len(entries)} entries"
    _print_entries(shown, [], caption, arguments.code)


def _print_entries(
    entries: Sequence["Remembered"], cosines: Sequence[float], caption: str, with_code: bool
) -> None:
    """Print a table; the cosines, if any, are its first column."""
    if not entries:
        print(caption)
        return
    names = [*(["cosine"] if cosines else []), "id", "share", "label", "question"]
    table = _table([*names, *(["code"] if with_code else [])], caption)
    for number, entry in enumerate(entries):
        cells = [entry.id, f"{entry.share:.2f}", _line(entry.label), _line(entry.question)]
        table.add_row(
            *([f"{cosines[number]:.3f}"] if cosines else []),
            *(_text(cell) for cell in cells),
            *([_text(printable(entry.code))] if with_code else []),
        )
    _print(table)


# -------------------- search


def _search(arguments: argparse.Namespace, folder: Path, bank: "MemoryBank") -> None:
    view = bank.everything()
    if arguments.plain:
        wanted = arguments.text.casefold()
        found = [entry for entry in view.entries if wanted in entry.question.casefold()]
        if arguments.json:
            _print_json([asdict(entry) for entry in found[: arguments.top]])
            return
        caption = f"{min(len(found), arguments.top)} of {len(found)} questions that contain the text"
        _print_entries(found[: arguments.top], [], caption, arguments.code)
        return
    if not len(view):
        raise DataError(f"{folder} holds no entries yet; try again after the first iteration")
    skill = measured(arguments.text, folder, bank)
    nearest = view.nearest(skill.vector_D, arguments.top)
    if arguments.json:
        rows = [{"cosine": cosine, **asdict(entry)} for entry, cosine in nearest]
        _print_json({"code": skill.code, "parsed": skill.parsed, "nearest": rows})
        return
    unread = "" if skill.parsed else " (no abstract function: the question itself)"
    print(f"measured as{unread}:\n{printable(skill.code)}\n")
    caption = f"nearest of {len(view)} entries, by {bank.name}"
    _print_entries(
        [entry for entry, _ in nearest], [cosine for _, cosine in nearest], caption, arguments.code
    )


def measured(question: str, folder: Path, bank: "MemoryBank") -> "Skill":
    """Measure a question as the self-play of a bank does, without touching its folder.

    Raises:
        ConfigError: the config is not there, or it measures otherwise than the bank's vectors were.
    """
    from megatron_srpo.config.loader import load_config
    from megatron_srpo.config.self_play import SelfPlayConfig
    from megatron_srpo.selfplay.folders import CONFIG
    from megatron_srpo.selfplay.skill.measure import open_skill_measure

    path = folder.parent / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"{path} is not there, so it is unknown how skills were measured; search with --text, or "
            "put it back"
        )
    with tempfile.TemporaryDirectory() as scratch:
        # The self-play may be running, and its cache of skills has one writer.
        config = load_config(SelfPlayConfig, path, [f"output_dir={json.dumps(scratch)}"])
        measure = open_skill_measure(config)
        try:
            if (measure.name, measure.dimension) != (bank.name, bank.dimension):
                raise ConfigError(
                    f"{path} measures skills by {measure.name!r} ({measure.dimension} numbers), but the "
                    f"memory holds vectors of {bank.name!r} ({bank.dimension}); set its skill.* back"
                )
            return measure.measure([question])[0]
        finally:
            measure.close()


# -------------------- stats


def _stats(arguments: argparse.Namespace, folder: Path, bank: "MemoryBank") -> None:
    from megatron_srpo.selfplay.memory_stats import memory_stats

    stats = memory_stats(bank)
    if arguments.json:
        _print_json(asdict(stats))
        return
    print("\n".join(_summary(folder, stats)))
    if stats.entries:
        _print(_iterations_table(stats))
        print("\n".join(_share_lines(stats.shares)))


def _summary(folder: Path, stats: "MemoryStats") -> list[str]:
    lines = [
        f"{folder}: {stats.entries} entries of {len(stats.iterations)} iterations",
        f"vectors: {stats.dimension} numbers, by {stats.name}",
    ]
    if stats.vector_lengths and stats.label_characters:
        shortest, longest = stats.vector_lengths
        least, middle, most = stats.label_characters
        lines += [
            f"length of the vectors: {shortest:.6f} to {longest:.6f}",
            f"characters of the labels: {least} to {most}, median {middle:g}",
            f"repeated questions: {stats.repeated_questions}; repeated code: {stats.repeated_codes}",
        ]
    return lines


def _iterations_table(stats: "MemoryStats") -> "Table":
    from megatron_srpo.selfplay.memory_stats import SAMPLED

    table = _table(
        [
            "iteration",
            "entries",
            "share",
            "mean",
            "nearest",
            "mean to\nearlier",
            "nearest\nearlier",
            "largest\nearlier",
        ],
        "share: mean share of the labels. Then cosines: of two questions of the iteration; to the nearest "
        "other one of it; to all of earlier iterations; to the nearest of them, mean and largest. Nearest "
        f"ones and those to earlier ones: of at most {SAMPLED} questions of an iteration, evenly spaced.",
    )
    for row in stats.iterations:
        numbers = (
            row.share_mean,
            row.within_mean,
            row.within_nearest,
            row.earlier_mean,
            row.earlier_nearest,
            row.earlier_max,
        )
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        table.add_row(str(row.iteration), str(row.entries), *cells)
    return table


def _share_lines(shares: Sequence[int]) -> list[str]:
    lines = ["share of the label among the Solver's answers:"]
    for number, count in enumerate(shares):
        bar = "█" * round(_BAR * count / max(1, *shares))
        lines.append(f"  {number / 10:.1f}-{(number + 1) / 10:.1f}  {count:>7}  {bar}".rstrip())
    return lines


# -------------------- texts


def printable(text: str) -> str:
    """Return a model's text as a terminal may show it: control characters become escapes, as in ``\\x1b``."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _line(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _CUT else f"{line[:_CUT]} ... ({len(text)} characters)"


def _text(cell: str) -> Any:
    from rich.text import Text

    return Text(cell)  # brackets in it are not markup


def _table(names: Sequence[str], caption: str) -> "Table":
    from rich.table import Table

    table = Table(caption=_text(caption))
    for name in names:
        # A heading is never cut, however narrow the terminal.
        table.add_column(name, overflow="fold", min_width=max(map(len, name.split("\n"))))
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    Console(force_terminal=platform.console_is_terminal()).print(table)


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, indent=1))
