"""``report`` writes the page of a run from what lies in its folder."""

import json
from pathlib import Path

import pytest

from megatron_srpo.cli import main
from tests.report.synthetic import write_run
from tests.selfplay.made_up import write_self_play


def test_a_folder_without_metrics_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no metrics.jsonl; name the output_dir of a run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_absent_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "absent holds no metrics.jsonl" in capsys.readouterr().err


def test_a_damaged_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    assert main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_the_page_is_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, "reward/accuracy": step / 10, "reward/mean": step / 10} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", str(tmp_path)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "report.html"
    assert "<html" in page.read_text(encoding="utf-8")


def test_several_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds are taken together, and the page goes where it was wanted."""
    folders = [write_run(tmp_path / f"seed{seed}", steps=4, evaluate_every=2, seed=seed) for seed in (1, 2)]
    out = tmp_path / "pages" / "comparison.html"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text(encoding="utf-8")
    assert "Comparison of 2 runs" in text and "srpo (2 runs)" in text
    assert not (folders[0] / "report.html").exists()


def test_a_run_named_twice_is_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    assert main(["report", str(folder), str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_out_is_for_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 2
    assert "name several, or leave it out" in capsys.readouterr().err


def test_of_several_runs_the_one_without_metrics_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    assert main(["report", str(folder), str(tmp_path / "absent")]) == 2
    assert "absent holds no metrics.jsonl" in capsys.readouterr().err


def test_a_self_play_gets_its_own_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="needs the extra self-play")
    folder = write_self_play(tmp_path / "play")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "Local Diversity Illusion" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "diversity.json").read_text())["iterations"][2]["recurrence/near"] == 0.75


def test_self_plays_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="needs the extra self-play")
    folders = [str(write_self_play(tmp_path / name, ({0: 2}, {0: 2}))) for name in ("a", "b")]
    out = tmp_path / "out"
    assert main(["report", *folders, "--labels", "R-Zero", "R-Diverse", "--out", str(out)]) == 0
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert said["html"] == str(out / "self_play.html")
    assert "R-Diverse" in Path(said["markdown"]).read_text() and (tmp_path / "a" / "report.html").exists()


@pytest.mark.parametrize(
    ("labels", "words"),
    [(["one"], "--labels has 1 names for 2 self-plays"), (["a", "b", "c"], "--labels has 3 names")],
)
def test_labels_fit_the_self_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], words: str
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "iteration_01").mkdir(parents=True)
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *folders, "--labels", *labels]) == 2
    assert words in capsys.readouterr().err


def test_runs_and_self_plays_are_compared_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", steps=2)
    (tmp_path / "play" / "iteration_01").mkdir(parents=True)
    assert main(["report", str(tmp_path / "play"), str(run)]) == 2
    assert f"{run} is no self-play, others are" in capsys.readouterr().err
    assert main(["report", str(run), "--labels", "x"]) == 2
    assert "--labels names several self-plays; leave it out" in capsys.readouterr().err
