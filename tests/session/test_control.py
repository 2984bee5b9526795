"""Reasons to stop that one rank knows of by itself."""

from pathlib import Path

from megatron_srpo.session.control import Control, stop_file
from megatron_srpo.session.stop import StopSignals
from megatron_srpo.training.fence import claim


def test_a_file_a_signal_and_another_owner_are_reasons(tmp_path: Path) -> None:
    signals = StopSignals()
    control = Control(claim(tmp_path), signals)
    assert not control.pending()
    stop_file(tmp_path).touch()
    assert control.pending()
    stop_file(tmp_path).unlink()
    assert not control.pending()
    signals.asked = "SIGUSR1"
    assert control.pending()
    signals.asked = None
    claim(tmp_path)
    assert control.pending()
