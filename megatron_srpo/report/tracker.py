"""Weights & Biases, as far as the config asks for it, and never in the way of the run."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from megatron_srpo.config.report import WandbConfig
from megatron_srpo.report.metrics import Row

ID_FILE = "wandb_id.txt"


class Tracker:
    """Sends metrics to one wandb run.

    The run id lies in the run folder, so that a resumed run goes on in the same wandb run. Rows logged again
    after a resume equal the first ones, and wandb ignores steps that it already has. Whatever goes wrong with
    wandb (not installed, no login, no network, disk full) is handed to ``warn`` once, and the run goes on
    without it: metrics.jsonl holds everything anyway.

    Args:
        config: the wandb section of the report config; with mode ``off`` wandb is not even imported.
        run_dir: run folder; wandb's own files go to ``run_dir/wandb``.
        run_config: the run's whole configuration, shown by wandb.
        resume: go on with the id in the run folder instead of drawing a new one.
        warn: receives one sentence when wandb fails.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_dir: str | Path,
        run_config: Mapping[str, Any] | None = None,
        resume: bool = False,
        warn: Callable[[str], None] = print,
    ) -> None:
        self._config, self._run_dir, self._warn = config, Path(run_dir), warn
        self._run: Any = None
        if config.mode != "off":
            self._run = self._guarded(lambda: self._start(dict(run_config or {}), resume))

    @property
    def run_id(self) -> str | None:
        """The wandb run id; None while wandb is off or has failed."""
        return None if self._run is None else str(self._run.id)

    def log(self, row: Row) -> None:
        """Send one step's metrics; values that were not finite (None) are left out."""
        if self._run is not None:
            values = {name: value for name, value in row.items() if value is not None and name != "step"}
            self._guarded(lambda: self._run.log(values, step=row["step"]))

    def finish(self, failed: bool = False) -> None:
        """Close the wandb run; ``failed`` marks it as crashed."""
        if self._run is not None:
            self._guarded(lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _start(self, run_config: dict[str, Any], resume: bool) -> Any:
        import wandb  # imported late: it costs a second, and most runs do without

        config = self._config
        settings = wandb.Settings(
            console="off",  # wandb's capture of the terminal and the live progress bar spoil each other
            silent=True,
            init_timeout=config.init_timeout,
            login_timeout=config.init_timeout,
        )
        return wandb.init(
            mode=cast(Any, config.mode),  # wandb spells its modes as a Literal
            project=config.project,
            entity=config.entity,
            name=config.name or self._run_dir.resolve().name,
            group=config.group,
            tags=config.tags,
            config=run_config,
            dir=str(self._run_dir),
            id=run_id(self._run_dir, resume),
            resume="allow",
            settings=settings,
        )

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # The boundary to a service that is a convenience: no failure inside it may cost hours of training.
        except Exception as error:
            self._run = None
            self._warn(
                f"wandb ({self._config.mode}) failed: {type(error).__name__}: {error}; the run goes on "
                "without it. Run `wandb login`, or set report.wandb.mode to off or offline"
            )
            return None


def run_id(run_dir: Path, resume: bool) -> str:
    """Return the id in the run folder (``resume``), or draw a new one and store it there."""
    path = run_dir / ID_FILE
    stored = path.read_text(encoding="utf-8").strip() if resume and path.exists() else ""
    if stored:
        return stored
    drawn = secrets.token_hex(4)
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn + "\n", encoding="utf-8")
    return drawn
