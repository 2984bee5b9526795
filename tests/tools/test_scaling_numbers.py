"""What a scaling study makes of the metrics of its runs: numbers, predictions, tables, figures."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_srpo.config.loader import load_config, to_yaml
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import DataError
from megatron_srpo.session.recording import TRAINING_PHASES
from tests.conftest import REPOSITORY
from tests.tools.scaling_rows import ROLLOUTS, measured, result, row
from tools.scaling.figures import draw
from tools.scaling.measure import Spread, measure
from tools.scaling.predict import Predicted, predict
from tools.scaling.results import scale
from tools.scaling.table import Page, write_csv, write_page

PREDICTED = Predicted(2.0, dict.fromkeys(TRAINING_PHASES, 2.0 / len(TRAINING_PHASES)), 100.0)


def test_steps_after_the_warm_up_are_counted() -> None:
    rows = [row(1, 100.0), row(2, 1.0, **{"sync/bytes": 10.0}), row(3, 3.0, **{"sync/bytes": 30.0})]
    found = measure(rows, 1, ROLLOUTS)
    assert found.steps == 2
    assert found.step == Spread(2.0, pytest.approx(2**0.5))
    assert found.seconds["generate"] == Spread(0.5, pytest.approx(0.125**0.5))
    assert found.seconds["teacher"] == Spread(0.0, 0.0)
    assert found.rate.mean == 1600 / 4  # all tokens over all seconds, not the mean of 800 and 267
    assert found.rate.deviation == pytest.approx((800 - 800 / 3) / 2**0.5)
    assert (found.tokens, found.sync_bytes) == (800, 20)
    assert (found.prompt_tokens, found.response_tokens) == (25, 75)
    assert found.staleness is None


def test_one_step_has_no_deviation_and_none_is_an_error() -> None:
    assert measure([row(2, 1.0)], 1, ROLLOUTS).step == Spread(1.0, None)
    with pytest.raises(DataError, match="no timed step after step 2"):
        measure([row(1, 1.0), row(2, 1.0), {"step": 3, "eval/accuracy": 1.0}], 2, ROLLOUTS)


def test_speed_up_counts_tokens_and_efficiency_counts_gpus() -> None:
    weak = [result("weak", 1, 2.0, server_gpus=1), result("weak", 4, 1.0, server_gpus=4)]
    first, last = scale(weak)
    assert (first.speed_up, first.efficiency) == (1.0, 1.0)
    assert (last.speed_up, last.efficiency) == (2.0, 0.5)  # twice the tokens/s on 8 GPUs instead of 2


def test_a_curve_begins_where_something_was_measured() -> None:
    lines = scale([result("weak", 1, None), result("weak", 2, 1.0), result("weak", 4, 0.5)])
    assert [line.first_nodes for line in lines] == [2, 2, 2]
    assert [line.speed_up for line in lines] == [None, 1.0, 2.0]
    assert [line.efficiency for line in lines] == [None, 1.0, 1.0]


def test_curves_are_compared_with_their_own_first_point() -> None:
    lines = scale([result("weak", 1, 2.0), result("weak", 1, 1.0, staleness=1), result("strong", 2, 4.0)])
    assert [line.speed_up for line in lines] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("staleness", "server_gpus"), [(0, 0), (0, 4), (1, 4)])
def test_predicted_phases_add_up_to_the_predicted_step(
    tmp_path: Path, staleness: int, server_gpus: int
) -> None:
    placement = "disaggregated" if server_gpus else "colocated"
    run = ["parallel.tensor=1", "rollout.engine=sglang", f"rollout.placement={placement}"]
    config = tmp_path / "run.yaml"
    quickstart = REPOSITORY / "examples/quickstart.yaml"
    changes = [*run, f"rollout.max_staleness={staleness}", "rollout.max_response_tokens=128"]
    config.write_text(to_yaml(load_config(RunConfig, quickstart, changes)))
    found = predict(config, "h100", 4, server_gpus, 1, measured(1.0))
    assert found.seconds is not None and not found.obstacle
    assert set(found.seconds) == set(TRAINING_PHASES)
    assert sum(found.seconds.values()) == pytest.approx(found.step)
    assert min(found.seconds.values()) >= 0
    # 32 prompts x 8 responses of the measured 25 + 75 tokens.
    assert found.rate_per_gpu == pytest.approx(256 * 100 / found.step / (4 + server_gpus))


def test_what_the_planner_cannot_say_is_said(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    missing = load_config(RunConfig, REPOSITORY / "examples/quickstart.yaml", ["model.path=/not/here"])
    config.write_text(to_yaml(missing))
    assert "/not/here" in predict(config, "h100", 2, 0, 1, None).obstacle


def test_the_csv_has_every_number_of_every_line(tmp_path: Path) -> None:
    lines = [
        result("weak", 1, 2.0, predicted=PREDICTED),
        result("weak", 2, 2.0, predicted=Predicted(obstacle="does not fit")),
        result("strong", 2, None),
    ]
    write_csv(scale(lines), tmp_path / "points.csv")
    with (tmp_path / "points.csv").open() as file:
        one, two, failed = csv.DictReader(file)
    assert float(one["tokens_per_second_per_gpu"]) == 400
    assert (one["step_seconds"], one["generate_seconds"], one["update_seconds"]) == ("2.0", "0.5", "1.5")
    assert (one["predicted_step_seconds"], one["predicted_tokens_per_second_per_gpu"]) == ("2.0", "100.0")
    assert (one["sync_bytes_per_server"], one["state"]) == ("", "finished")
    assert (two["efficiency"], two["predicted_step_seconds"]) == ("0.5", "")
    assert two["no_prediction_because"] == "does not fit"
    assert (failed["state"], failed["reason"], failed["tokens_per_second"]) == (
        "failed",
        "out | of\nmemory",
        "",
    )


def test_the_page_shows_what_failed_and_why(tmp_path: Path) -> None:
    lines = [result("weak", 1, 2.0, predicted=PREDICTED), result("weak", 2, None)]
    page = Page("Title", "nodes", "h100", ["A sentence."], ["phases.svg"])
    write_page(scale(lines), page, tmp_path / "study.md")
    text = (tmp_path / "study.md").read_text()
    assert "| on-policy | 1 | 1 + 0 | 4 | 2.00 ± 0.00 | 400.0 | 400.0 | 1.00 | 100% | none |" in text
    assert "| on-policy | 2 | 2 + 0 | 4 | failed |" in text
    assert "* `points/weak-n2-k0`: out | of memory" in text
    assert "prediction for h100" in text and "![phases.svg](phases.svg)" in text
    widths = {
        line.count("|") for line in text.splitlines() if line.startswith(("| staleness", "| on-policy"))
    }
    assert len(widths) == 1  # every row is as wide as its head


def test_figures_show_every_curve_and_its_prediction(tmp_path: Path) -> None:
    stale = [result("weak", nodes, 1.5, staleness=2) for nodes in (1, 2)]
    lines = [result(mode, nodes, 2.0, predicted=PREDICTED) for mode in ("weak", "strong") for nodes in (1, 2)]
    names = draw(scale([*lines, *stale]), "nodes", tmp_path)
    assert names == [
        f"{name}.{end}" for name in ("throughput", "speed_up", "phases") for end in ("svg", "png")
    ]
    texts = {name: (tmp_path / name).read_text() for name in names if name.endswith("svg")}
    for text in ("on-policy", "on-policy, predicted", "2-off", "ideal", "tokens/s/GPU", "nodes"):
        assert f">{text}<" in texts["throughput.svg"], text
    assert ">2-off, predicted<" not in texts["throughput.svg"]  # the planner was not asked
    assert ">weak, 2-off, 2 nodes<" in texts["phases.svg"]
    for name in names:
        if name.endswith("png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_equal_numbers_draw_equal_figures_and_no_number_draws_none(tmp_path: Path) -> None:
    lines = scale([result("strong", 1, 1.0)])
    drawn = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        draw(lines, "replicas", folder)
        drawn.append((folder / "phases.svg").read_text())
    assert drawn[0] == drawn[1]
    assert ">strong, on-policy, 1 replica<" in drawn[0]
    assert draw(scale([result("weak", 1, None)]), "nodes", tmp_path) == []


def test_a_prediction_of_a_curve_scales_like_its_gpus() -> None:
    lines = [result("strong", 1, 2.0, predicted=PREDICTED), result("strong", 2, 2.0, predicted=PREDICTED)]
    slower = replace(PREDICTED, rate_per_gpu=50.0)
    found = scale([lines[0], replace(lines[1], predicted=slower)])
    assert [line.predicted_speed_up for line in found] == [1.0, 1.0]
    assert [line.predicted_efficiency for line in found] == [1.0, 0.5]
