"""The rollout engine that the config names."""

from typing import Any

from megatron_srpo import platform
from megatron_srpo.config.run import RunConfig
from megatron_srpo.rollout.engine import RolloutEngine
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.session.models import DTYPES


def build_engine(config: RunConfig, tokenizer: Any) -> RolloutEngine:
    """Start the engine with the weights of the model folder.

    Raises:
        EngineError: the folder cannot be served.
    """
    return LocalEngine(
        config.model.path,
        DTYPES[config.rollout.local_dtype],
        platform.device(),
        config.rollout.local_batch_size,
        vocab_limit=len(tokenizer),
    )
