"""``eval`` measures a model folder on the config's evaluation sets, in this process."""

import json
from pathlib import Path

import pytest

from megatron_srpo.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "qwen3-tiny"
GIVEN = ["eval", "--config", str(ROOT / "examples" / "quickstart.yaml")]

SMALL = [
    f"model.path={MODEL}",
    "data.eval=[{kind: reasoning_gym, family: gcd, seed: 9, size: 3, "
    "config: {min_numbers: 2, max_numbers: 2, min_value: 1, max_value: 60}}]",
    "evaluation.samples_per_prompt=2",
    "evaluation.max_response_tokens=4",
    "reward.workers=0",
]


def test_a_table_and_all_responses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIVEN, "--out", str(tmp_path), *SMALL]) == 0
    text = capsys.readouterr().out
    table = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    assert {"gcd", "mean"} <= set(table)
    assert "avg@k" in text and "pass@k" in text and "maj@k" in text
    (saved,) = tmp_path.glob("*.json")
    assert str(saved) in text.replace("\n", "")
    assert "gcd" in json.dumps(json.loads(saved.read_text()))


def test_the_same_seed_gives_the_same_responses(tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert main([*GIVEN, "--out", str(tmp_path / name), *SMALL]) == 0
    one, other = (next((tmp_path / name).glob("*.json")).read_text() for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.eval=[]"], "data.eval is empty; name at least one evaluation set"),
        (["model.path=nowhere"], "model folder 'nowhere' does not exist"),
        (["evaluation.evry=3"], "unknown config key 'evaluation.evry'; did you mean 'every'?"),
        (["data.max_prompt_tokens=3"], "no prompt is within data.max_prompt_tokens = 3"),
    ],
)
def test_refusals(overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIVEN, *SMALL, *overrides]) == 2
    assert message in capsys.readouterr().err
