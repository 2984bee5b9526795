"""The benchmark of self-play's memory, once through on little data."""

import re

import pytest

from tools.benchmarks import bench_memory

pytest.importorskip("nltk", reason="needs nltk (make install-self-play)")
pytest.importorskip("sklearn", reason="needs scikit-learn (make install-self-play)")


def test_every_table_has_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--entries", "300", "--dimension", "16", "--queries", "3", "5", "--questions", "20", "30"]
    given = ["--repeats", "2", "--threads", "1", "--nltk-pairs", "50", *sizes]
    monkeypatch.setattr("sys.argv", ["bench_memory", *given])
    bench_memory.main()
    text = capsys.readouterr().out
    assert "memory: 300 x 16, 0.0 GB" in text
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == ["3", "5", "20", "30", "20", "30"]
    heads = [line for line in text.splitlines() if line.startswith("| qu")]
    for head, row in zip(heads, re.findall(r"^\| (?:3|20) .*$", text, re.MULTILINE), strict=True):
        assert head.count("|") == row.count("|")
