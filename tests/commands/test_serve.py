"""``serve`` refuses what cannot work before it starts anything, and hears the right signals."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.cli import main
from megatron_srpo.commands import serve
from megatron_srpo.rollout.sglang import keeper as keepers

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart.yaml")


class Kept:
    """Stands for the keeper, and notes what it is given."""

    made: tuple[Any, ...] = ()

    def __init__(self, *given: Any) -> None:
        type(self).made = given

    def run(self, ended: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not ended(), "the signal before a time limit is not for servers"
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended() == (signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    monkeypatch.setattr(keepers, "Keeper", Kept)
    return Kept


def serve_with(*arguments: str) -> int:
    return main(["serve", "--config", QUICKSTART, "rollout.sglang.servers=4", *arguments])


def test_what_the_keeper_is_given(tmp_path: Path, kept: type[Kept]) -> None:
    options = ["--slot=1", "--slots=2", "--host=127.0.0.1", f"output_dir={tmp_path}/run"]
    assert serve_with("--register", f"{tmp_path}/servers", *options) == 0
    config, model, dtype, logs, registry, slots, _ = kept.made
    assert (config.host, model, dtype) == ("127.0.0.1", "examples/models/qwen3-tiny", "float32")
    assert (logs, registry.folder, slots) == (
        tmp_path / "run" / "engine",
        tmp_path / "servers",
        range(1, 3),
    )


@pytest.mark.parametrize("ignored", [False, True])
def test_signals(tmp_path: Path, kept: type[Kept], ignored: bool) -> None:
    """SIGTERM ends it, unless whoever started it ignored SIGTERM on purpose."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    if ignored:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert serve_with(f"rollout.sglang.registry={tmp_path}", "--host=127.0.0.1") == 0
    finally:
        signal.signal(signal.SIGTERM, before[0])
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no registry is named; give --register FOLDER"),
        (["--register=x", "--slot=3", "--slots=2"], "slots 3 to 4 of rollout.sglang.servers = 4"),
        (
            ["--register=x", "rollout.sglang.urls=[http://a:1]", "rollout.sglang.servers=1"],
            "rollout.sglang.urls = ['http://a:1'] names external servers",
        ),
        (["--register=x", "--host=192.0.2.7"], "--host 192.0.2.7 is not an address of this machine"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_with(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "one", "1.5"])
def test_a_slot_is_a_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve_with("--register=x", f"--slot={text}")
    assert f"{text!r} is not possible; give a whole number from 0" in capsys.readouterr().err


def test_slot_numbers() -> None:
    assert serve.slot_number("0") == 0 and serve.slot_number("17") == 17
