import subprocess
import sys

import pytest

from megatron_srpo.errors import ConfigError
from megatron_srpo.rewards.registry import BUILT_IN, load_verifier
from tests.data.helpers import prompt
from tests.rewards import hostile


@pytest.mark.parametrize("task", sorted(BUILT_IN))
def test_built_in_verifiers_load(task: str) -> None:
    assert callable(load_verifier(task).verify)


def test_a_verifier_of_your_own() -> None:
    verifier = load_verifier("tests.rewards.hostile:act")
    assert verifier.verify is hostile.act
    assert verifier.verify(prompt(), "0.25") == 0.25


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("maths", r"'maths'; did you mean 'math'\? There are math, reasoning_gym"),
        ("qqqq", r"no verifier is called 'qqqq'; there are math"),
        ("tests.nowhere:verify", r"module 'tests.nowhere' cannot be imported: ModuleNotFoundError"),
        ("tests.rewards.hostile:missing", r"has no function 'missing'"),
        ("tests.rewards.hostile:not_a_function", r"has no function 'not_a_function'"),
        (":verify", r"module '' cannot be imported"),
    ],
)
def test_verifiers_that_do_not_exist_are_refused(task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_verifier(task)


def test_the_pool_and_its_worker_import_nothing_heavy() -> None:
    """A worker must start fast; what a verifier needs is imported when it is first used."""
    code = (
        "import sys, megatron_srpo.rewards.pool, megatron_srpo.rewards.worker;"
        "print([name for name in ('torch', 'transformers', 'numpy', 'sympy', 'reasoning_gym', 'pyarrow')"
        " if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
