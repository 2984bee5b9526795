"""Configuration of the verifiers and of the pool of processes that runs them (``reward``)."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Config):
    """How responses become rewards."""

    workers: int = option(
        2, "Processes that score answers; 0 scores in this process, for cheap verifiers only.", minimum=0
    )
    time_limit_s: float = option(5.0, "Seconds one answer may take; then it scores 0.")
    load_limit_s: float = option(120.0, "Seconds a worker may take to start and to import a verifier.")
    max_answer_characters: int = option(
        200_000, "Longer responses score 0 without being looked at.", minimum=1
    )
    max_worker_memory_mb: int | None = option(
        4096,
        "Address space of one worker in MiB; an answer that needs more scores 0. null: no limit.",
        minimum=512,
    )
    binary: bool = option(True, "Turn a verifier's score into 1 (at or above threshold) or 0.")
    threshold: float = option(0.99, "Score that counts as right.", minimum=0.0, maximum=1.0)
    environment_feedback: bool = option(
        False, "Hand on the verifier's short remark on a wrong answer (never the answer itself)."
    )

    def validate(self) -> None:
        for key in ("time_limit_s", "load_limit_s"):
            if not 0 < self.__dict__[key] < float("inf"):
                raise ConfigError(f"reward.{key} = {self.__dict__[key]}; give a positive number of seconds")
        if self.threshold == 0:
            raise ConfigError("reward.threshold = 0 makes every answer right; give a positive number")
