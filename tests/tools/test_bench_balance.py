"""The benchmark of dealt-out work, once through on two replicas."""

import re

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tools.benchmarks import bench_balance


def measured(rank: int, world: int, config: RunConfig) -> str:
    return bench_balance.measure(config, rounds=1)


def test_one_round_shows_both_ways() -> None:
    model = REPOSITORY / "examples" / "models" / "qwen3-tiny"
    overrides = [f"model.path={model}", "parallel.tensor=1"]
    config = load_config(RunConfig, REPOSITORY / "examples" / "quickstart.yaml", overrides)
    table, other = run_ranks(2, measured, config)
    assert table == other
    first, _, _, *rows = table.splitlines()
    few, many = map(int, re.findall(r"\d+", first)[:2])
    assert many > 1.5 * few  # the batch is skewed
    assert [row.split("|")[1].strip() for row in rows] == ["off", "on"]
    off, on = ([float(text) for text in row.split("|")[2:-1]] for row in rows)
    # Predicted, measured, slowest and mean seconds, seconds of the exchange.
    assert off[0] > 1.2 > 1.05 > on[0] >= 1.0
    assert all(row[1] >= 1.0 and row[2] >= row[3] > 0.0 and row[4] > 0.0 for row in (off, on))
