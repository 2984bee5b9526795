"""What the optimizer refuses."""

from types import SimpleNamespace

import pytest

from megatron_srpo import platform
from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.training import optimizer


def test_a_distributed_optimizer_that_could_not_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: True)
    monkeypatch.setattr(optimizer, "HAVE_APEX_OR_TE", False)
    model = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"Transformer Engine or Apex.*optimizer\.distributed=false"):
        optimizer.PolicyOptimizer(OptimizerConfig(), model, total_steps=1)
