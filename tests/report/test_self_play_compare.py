"""Comparison of self-plays: means and deviations worked out by hand, and files that are what they claim."""

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from megatron_srpo.errors import DataError
from megatron_srpo.report.self_play_compare import group_self_plays, write_self_play_comparison
from tests.selfplay.made_up import row, write_lines


def write(folder: Path, ends: tuple[float, ...], **config: object) -> Path:
    """A self-play of which the accuracy after each iteration, and a recurrence, are told."""
    rows = [
        {**row(number, 0.2), "accuracy/after": end, "recurrence/near": end / 2, "skill/clusters": 10 * number}
        for number, end in enumerate(ends, 1)
    ]
    write_lines(folder / "iterations.jsonl", rows)
    tree = {"reward": {"memory": False}, "output_dir": str(folder), **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("self-plays")
    return {
        "R-Zero": [write(root / "z1", (0.3, 0.2)), write(root / "z2", (0.5, 0.4))],
        "R-Diverse <b>|": [write(root / "d1", (0.3, 0.6, 0.7))],
    }


@pytest.fixture(scope="module")
def written(folders: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_self_play_comparison(folders, tmp_path_factory.mktemp("out"), title="A & B")


def test_the_table_has_means_and_deviations(written: dict[str, Path]) -> None:
    """Two values x and y: the sample standard deviation is |x - y| / sqrt(2)."""
    lines = written["markdown"].read_text().splitlines()
    assert lines[0] == "# A & B"
    assert lines[2].startswith("| label | iteration | accuracy | labels right |")
    assert lines[4].startswith("| R-Zero | 0 | 0.250 ± 0.000 | - |")
    assert lines[5].startswith("| R-Zero | 1 | 0.400 ± 0.141 | 0.750 ± 0.000 |")
    assert lines[6].startswith("| R-Zero | 2 | 0.300 ± 0.141 |")
    assert "| 0.150 ± 0.071 |" in lines[6] and "| 20 ± 0 |" in lines[6]
    assert lines[10].startswith("| R-Diverse <b>/ | 3 | 0.700 |"), "a bar would end the cell"


def test_a_self_play_that_is_behind_is_counted(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    both = {"x": [*folders["R-Zero"][:1], *folders["R-Diverse <b>|"]]}
    lines = write_self_play_comparison(both, tmp_path)["markdown"].read_text().splitlines()
    assert lines[6].startswith("| x | 2 | 0.400 ± 0.283 |")
    assert lines[7].startswith("| x | 3 | 0.700 (1) |")


def test_csv_holds_every_number(written: dict[str, Path]) -> None:
    with written["csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["label"], line["self_play"], line["iteration"]) for line in lines[:4]] == [
        ("R-Zero", "z1", "0"),
        ("R-Zero", "z1", "1"),
        ("R-Zero", "z1", "2"),
        ("R-Zero", "z2", "0"),
    ]
    assert float(lines[2]["heldout"]) == 0.2 and lines[0]["recurrence/near"] == ""


def test_the_figure_names_panels_and_labels(written: dict[str, Path]) -> None:
    svg = written["svg"].read_text()
    texts = ["".join(n.itertext()) for n in ElementTree.fromstring(svg).iter() if n.tag.endswith("}text")]
    for words in (
        "Held-out accuracy",
        "Recurrence: near-equal question before",
        "no run has skill/effective_clusters",
        "R-Zero (2 runs)",
        "R-Diverse <b>|",
        "iteration",
    ):
        assert words in texts
    assert written["png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_escapes_labels(written: dict[str, Path]) -> None:
    text = written["html"].read_text()
    assert "<h1>A &amp; B</h1>" in text and "R-Diverse &lt;b&gt;|" in text and "<b>|" not in text
    assert "0.400 ± 0.141" in text and text.count("<svg") == 1


def test_the_same_folders_give_the_same_files(
    folders: dict[str, list[Path]], written: dict[str, Path], tmp_path: Path
) -> None:
    again = write_self_play_comparison(folders, tmp_path, title="A & B")
    for kind, path in written.items():
        assert path.read_bytes() == again[kind].read_bytes(), kind


def test_seeds_are_found_where_no_label_is_given(tmp_path: Path) -> None:
    """The two training runs' own seeds and folders do not tell self-plays apart; their settings do."""
    runs = [{"seed": seed, "data": {"seed": seed}, "output_dir": str(seed)} for seed in (1, 2, 3)]
    for run in runs[:2]:
        write(tmp_path / str(run["seed"]), (0.5,), seed=run["seed"], challenger=run, solver=run)
    write(tmp_path / "3", (0.5,), seed=3, challenger=runs[2], solver={**runs[2], "model": {"path": "m"}})
    groups = group_self_plays([tmp_path / name for name in "123"])
    assert [[path.name for path in own] for own in groups.values()] == [["1", "2"], ["3"]]
    labelled = group_self_plays([tmp_path / name for name in "123"], ["a", "b", "a"])
    assert {label: [path.name for path in own] for label, own in labelled.items()} == {
        "a": ["1", "3"],
        "b": ["2"],
    }


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give at least one folder"):
        write_self_play_comparison({"x": []}, tmp_path / "out")
    (tmp_path / "iteration_01").mkdir()
    with pytest.raises(DataError, match="holds no finished iteration"):
        write_self_play_comparison({"x": [tmp_path]}, tmp_path / "out")
