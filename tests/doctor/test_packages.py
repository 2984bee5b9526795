"""Findings about installed packages: every bad state is made and must be reported with a remedy."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.doctor import packages

NOT_THERE = "a-package-that-nobody-published"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A pretended set of installed distributions, by name; empty at first."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_installed_version_reads_real_metadata() -> None:
    assert packages.installed_version("pytest") == Version(pytest.__version__)
    assert packages.installed_version(NOT_THERE) is None


def test_this_python_is_accepted() -> None:
    assert packages.check_python().status == "ok"


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 13, 0)])
def test_other_pythons_are_refused(version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.sys, "version_info", version)
    check = packages.check_python()
    assert check.status == "fail"
    assert ".".join(map(str, version)) in check.detail and "PYTHON=" in check.remedy


@pytest.mark.parametrize(
    ("found", "status"),
    [("2.10.0", "ok"), ("2.9.1", "fail"), ("2.15.0", "fail"), ("2.13.0+cpu", "ok"), ("2.11.0a0+git", "ok")],
)
def test_requirement_bounds(found: str, status: str, installed: dict[str, str]) -> None:
    """Local builds and a vendor's pre-releases inside the bounds count as good."""
    installed["torch"] = found
    check = packages.check_requirement(Requirement("torch>=2.10,<2.15"))
    assert check.status == status
    assert found in check.detail
    assert ("pip install 'torch<2.15,>=2.10'" in check.remedy) == (status == "fail")


def test_missing_requirement_names_the_command(installed: dict[str, str]) -> None:
    check = packages.check_requirement(Requirement("psutil>=5.9"))
    assert (check.status, check.remedy) == ("fail", "pip install 'psutil>=5.9'")


def test_requirements_come_from_the_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements of extras and of other Pythons are not asked for."""
    lines = ["psutil>=5.9", "numpy>=1; python_version < '3'", "ruff>=0.1; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "megatron-srpo" else None)
    assert [check.name for check in packages.check_requirements()] == ["psutil"]


def test_running_from_a_folder_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    (check,) = packages.check_requirements()
    assert check.status == "warn" and "pip install -e" in check.remedy


@pytest.mark.parametrize(
    ("versions", "cuda", "status"),
    [
        ({}, False, "ok"),
        ({}, True, "ok"),
        ({"transformer-engine": "2.9"}, True, "fail"),
        ({"transformer-engine": "2.9"}, False, "fail"),
        ({"transformer-engine": "2.9", "transformer-engine-torch": "2.9"}, True, "ok"),
        ({"transformer-engine": "2.9", "transformer-engine-torch": "2.9"}, False, "warn"),
    ],
)
def test_transformer_engine(
    versions: dict[str, str], cuda: bool, status: str, installed: dict[str, str]
) -> None:
    """The bare meta package breaks `import megatron.core`; without CUDA even the whole one is a burden."""
    installed.update(versions)
    check = packages.check_transformer_engine(cuda)
    assert check.status == status
    assert bool(check.remedy) == (status != "ok")


def test_transformer_engine_built_from_source(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one distribution then, with its PyTorch part beside the package. Nothing is imported."""
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    installed["transformer-engine"] = "2.8.0+local"
    assert packages.check_transformer_engine(cuda=True).status == "fail"
    (tmp_path / "transformer_engine_torch.cpython-312-x86_64-linux-gnu.so").touch()
    check = packages.check_transformer_engine(cuda=True)
    assert (check.status, check.detail) == ("ok", "2.8.0+local")
    assert packages.check_adam(cuda=True).detail.startswith("Transformer Engine's")


def test_absent_transformer_engine_says_what_is_lost(installed: dict[str, str]) -> None:
    assert "FP8" in packages.check_transformer_engine(cuda=True).detail


@pytest.mark.parametrize(("folder", "status"), [("multi_tensor_apply", "ok"), ("models", "warn")])
def test_apex_of_the_package_index_is_told_apart(
    folder: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]
) -> None:
    """NVIDIA's apex has `multi_tensor_apply`; the unrelated one does not. Neither is imported to find out."""
    (tmp_path / "apex" / folder).mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").write_text("raise AssertionError('the doctor must not import it')")
    monkeypatch.syspath_prepend(tmp_path)
    installed["apex"] = "0.9.10.dev0"
    check = packages.check_apex()
    assert check.status == status
    assert check.remedy == ("pip uninstall apex" if status == "warn" else "")


@pytest.mark.parametrize(
    ("present", "nvidia", "cuda", "status", "whose"),
    [
        (["transformer-engine-torch", "apex"], True, True, "ok", "Transformer Engine's"),
        (["apex"], True, True, "ok", "Apex's"),
        (["apex"], False, True, "warn", "PyTorch's"),
        ([], False, True, "warn", "PyTorch's"),
        ([], False, False, "ok", "PyTorch's"),
    ],
)
def test_whose_adam(
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    present: list[str],
    nvidia: bool,
    cuda: bool,
    status: str,
    whose: str,
) -> None:
    installed.update(dict.fromkeys(present, "2.0"))
    monkeypatch.setattr(packages, "is_nvidia_apex", lambda: nvidia)
    check = packages.check_adam(cuda)
    assert check.status == status and check.detail.startswith(whose)
    assert ("optimizer.distributed=false" in check.remedy) == (status == "warn")


def test_absent_apex_is_good(installed: dict[str, str]) -> None:
    assert packages.check_apex().status == "ok"


@pytest.mark.parametrize(
    ("leptonai", "status"), [("0.27.3", "ok"), ("0.46.9", "ok"), ("0.47.0", "fail"), ("0.47.1", "fail")]
)
def test_nemo_run_with_leptonai(leptonai: str, status: str, installed: dict[str, str]) -> None:
    installed.update({"nemo-run": "0.11.1", "leptonai": leptonai})
    check = packages.check_nemo_run()
    assert check.status == status
    assert ("leptonai<0.47" in check.remedy) == (status == "fail")


def test_optional_packages_that_are_absent_are_no_failure(installed: dict[str, str]) -> None:
    checks = packages.check_optional_packages(cuda=False)
    assert {check.status for check in checks} == {"ok"}
    assert [check.name for check in checks] == ["Transformer Engine", "apex", "Adam", "SGLang", "nemo-run"]


@pytest.mark.parametrize(
    ("found", "router", "status", "detail"),
    [
        ("0.5.23", "0.3.2", "ok", "0.5.23, router 0.3.2"),
        ("0.5.23", None, "ok", "0.5.23, without its router: several servers are asked in turn"),
        ("0.5.9", "0.3.2", "warn", "0.5.9; tested with 0.5.23"),
    ],
)
def test_sglang(found: str, router: str | None, status: str, detail: str, installed: dict[str, str]) -> None:
    installed["sglang"] = found
    if router is not None:
        installed["sglang-router"] = router
    check = packages.check_sglang()
    assert (check.status, check.detail) == (status, detail)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"engine": "sglang"}, "fail"),
        ({"engine": "sglang", "sglang": {"urls": ["http://127.0.0.1:30000"]}}, "ok"),
        ({"engine": "local"}, "ok"),
    ],
)
def test_sglang_is_needed_by_runs_that_start_servers(
    given: dict[str, Any], status: str, installed: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": {"path": "m"}, "rollout": given}))
    check = packages.check_sglang(load_config(RunConfig, str(config)).rollout)
    assert check.status == status
    assert ("make install-sglang" in check.remedy) == (status == "fail")
