"""Settings of the whole test session: one thread, no network, and an account of what could not run here.

The environment is set while this file is imported, that is before any test module imports torch.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from megatron_srpo.rollout.sglang.endpoint import Endpoint
    from megatron_srpo.rollout.sglang.process import HttpProcess
    from tools.chromium import Chromium

# One OpenMP thread per process: the tests start several ranks, and spinning threads starve one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A test that reaches for a hub is a defect: let it fail at once, with a clear message.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

# No test asserts wall-clock time, and an example may wait for a busy machine.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def missing_cuda(needed: int) -> str | None:
    """Say why a test that needs ``needed`` CUDA devices cannot run here; ``None`` when it can."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found >= needed:
        return None
    return "needs CUDA" if needed == 1 else f"needs {needed} CUDA devices (found {found})"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that ``make test-all`` uses."""
    parser.addoption("--run-slow", action="store_true", help="run the tests that are marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip ``slow`` tests unless asked for, and ``gpu`` tests where devices are missing.

    ``@pytest.mark.gpu(2)`` needs two.
    """
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow (make test-all)"))
        marker = item.get_closest_marker("gpu")
        reason = missing_cuda(*(marker.args or (1,))) if marker else None
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Hold torch, if a test module imported it, to one thread even when OMP_NUM_THREADS was set to more."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def not_run_lines(reasons: list[str]) -> list[str]:
    """Count equal reasons, one line for each: ``not run here: 2 tests: needs CUDA``."""
    return [
        f"not run here: {count} {'test' if count == 1 else 'tests'}: {reason}"
        for reason, count in Counter(reasons).most_common()
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with a count of what was not run, by reason, so that a green run never hides it."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[-1]).removeprefix("Skipped: ") for report in skipped if report.longrepr]
    for line in not_run_lines(reasons):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, absent here")
    return SHARED_DATA


@pytest.fixture(scope="module")
def browser() -> Iterator["Chromium"]:
    """A headless browser; modules that use it say what to do where there is none."""
    from tools.chromium import Chromium

    with Chromium() as started:
        yield started


@pytest.fixture
def page(browser: "Chromium", report: Path) -> "Chromium":
    """The browser with a module's own ``report`` opened."""
    browser.open(report)
    return browser


@pytest.fixture(scope="session")
def sglang_server_process() -> Iterator["HttpProcess"]:
    """The one fp32 server that all tests share; leave it idle and with its weights unchanged."""
    from tests.sglang_servers import start_server

    with start_server() as server:
        yield server


@pytest.fixture(scope="session")
def sglang_endpoint(sglang_server_process: "HttpProcess") -> "Endpoint":
    """Where the shared server listens."""
    return sglang_server_process.endpoint


@pytest.fixture(scope="module")
def borrowed_endpoint(sglang_endpoint: "Endpoint") -> Iterator["Endpoint"]:
    """The shared server, for a module whose tests change its weights; it gets them back at the end."""
    from tests.sglang_servers import restore

    yield sglang_endpoint
    restore(sglang_endpoint)
