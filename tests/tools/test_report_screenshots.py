"""The pictures of docs/report.md: small, of the right width, and refused without a run."""

from pathlib import Path

import pytest
from PIL import Image

from tests.report.synthetic import write_run
from tests.selfplay.made_up import write_self_play
from tools.chromium import find_chromium
from tools.report_screenshots import IMAGES, WIDTH, main

NAMES = {f"report-{part}.png" for part in ("accuracy", "lengths", "rollouts", "rollouts-dark", "comparison")}
MOST_BYTES = 300_000


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (make install-chromium)")
def test_pictures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / f"seed{seed}", steps=6, evaluate_every=2, seed=seed) for seed in (1, 2)]
    out = tmp_path / "images"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == NAMES
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert picture.width == WIDTH and picture.height > 300
            colours = picture.convert("RGB").resize((40, 40)).getcolors(1600)
            assert colours is not None and len(colours) > 20, "more than paper"
    assert main([str(tmp_path / "absent"), "--out", str(out)]) == 2
    assert "absent is not a folder" in capsys.readouterr().err


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (make install-chromium)")
def test_a_self_plays_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra self-play")
    assert main(["--self-play", str(write_self_play(tmp_path / "play")), "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "self-play-diversity.png") as picture:
        assert picture.width == WIDTH and picture.height > 600


def test_nothing_to_draw_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "name run folders, or --self-play FOLDER" in capsys.readouterr().err


def test_the_pictures_in_the_documentation_are_small() -> None:
    assert {path.name for path in IMAGES.glob("report-*.png")} == NAMES
    assert all(path.stat().st_size < MOST_BYTES for path in IMAGES.glob("report-*.png"))
    text = (IMAGES.parent / "report.md").read_text(encoding="utf-8")
    assert all(f"(images/{name})" in text for name in NAMES)
