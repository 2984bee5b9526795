"""Are the right packages installed, in versions that this project accepts?

The bounds are read from the installed metadata of ``megatron-srpo``, so ``setup.py`` stays their only place.
"""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from megatron_srpo import platform
from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.doctor.types import Check

DISTRIBUTION = "megatron-srpo"
# First leptonai without the module that nemo-run imports unconditionally.
LEPTONAI_BREAKS_NEMO_RUN = Version("0.47")
#: The version that the tests run against real servers.
TESTED_SGLANG = Version("0.5.23")


def installed_version(distribution: str) -> Version | None:
    """Return the installed version of a distribution, ``None`` when it is absent. Imports nothing."""
    try:
        return Version(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return None


def core_requirements() -> list[Requirement] | None:
    """Return what ``megatron-srpo`` needs on this Python; ``None`` when it is not installed as a package."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    requirements = [Requirement(line) for line in lines]
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def check_python() -> Check:
    """Python 3.11 and 3.12 are supported."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", "ok", found)
    return Check("python", "fail", f"{found}; 3.11 or 3.12 is needed", "run `make install PYTHON=python3.12`")


def check_requirements() -> list[Check]:
    """Compare every required package with its bounds."""
    requirements = core_requirements()
    if requirements is None:
        return [
            Check(DISTRIBUTION, "warn", "runs from a folder, not installed", "run `pip install -e '.[cpu]'`")
        ]
    return [check_requirement(requirement) for requirement in requirements]


def check_requirement(requirement: Requirement) -> Check:
    """Compare one installed package with its bounds."""
    found = installed_version(requirement.name)
    bounds = str(requirement.specifier)
    remedy = f"pip install '{requirement.name}{bounds}'"
    if found is None:
        return Check(requirement.name, "fail", f"not installed; needs {bounds}", remedy)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(requirement.name, "fail", f"{found}; needs {bounds}", remedy)
    return Check(requirement.name, "ok", str(found))


def check_optional_packages(cuda: bool, rollout: RolloutConfig | None = None) -> list[Check]:
    """Look at the packages that a run (with ``rollout``) may use or that are known to do harm."""
    return [
        check_transformer_engine(cuda),
        check_apex(),
        check_adam(cuda),
        check_sglang(rollout),
        check_nemo_run(),
    ]


def check_transformer_engine(cuda: bool) -> Check:
    """Transformer Engine is optional with CUDA and harmful when incomplete or without CUDA."""
    name, package = "Transformer Engine", "transformer-engine"
    found = installed_version(package)
    if found is None:
        use = "FP8 is not available" if cuda else "not needed without CUDA"
        return Check(name, "ok", f"absent; {use}")
    if not has_transformer_engine():
        return Check(
            name,
            "fail",
            f"{found}, without its PyTorch part: `import megatron.core` fails",
            f"pip uninstall {package}, or pip install --no-build-isolation '{package}[core_cu13,pytorch]'",
        )
    if not cuda:
        return Check(name, "warn", f"{found}, on a machine without CUDA", f"pip uninstall {package}")
    return Check(name, "ok", str(found))


def check_apex() -> Check:
    """``apex`` on the package index is not NVIDIA's."""
    found = installed_version("apex")
    if found is None:
        return Check("apex", "ok", "absent; not needed")
    if is_nvidia_apex():
        return Check("apex", "ok", f"{found} (NVIDIA's)")
    return Check("apex", "warn", f"{found} is an unrelated package of the same name", "pip uninstall apex")


def check_adam(cuda: bool) -> Check:
    """Say whose Adam Megatron-Core takes: the first that it finds of three."""
    if has_transformer_engine():
        return Check("Adam", "ok", "Transformer Engine's, fused")
    if installed_version("apex") is not None and is_nvidia_apex():
        return Check("Adam", "ok", "Apex's, fused")
    if not cuda:
        return Check("Adam", "ok", "PyTorch's")
    remedy = "install Transformer Engine or NVIDIA's apex, or set optimizer.distributed=false"
    return Check("Adam", "warn", "PyTorch's: slower, and not for a distributed optimizer", remedy)


def has_transformer_engine() -> bool:
    """Say whether Transformer Engine's part for PyTorch is there, packaged or built from source."""
    packaged = installed_version("transformer-engine-torch") is not None
    return packaged or platform.transformer_engine_version() is not None


def is_nvidia_apex() -> bool:
    """Say whether the installed ``apex`` has NVIDIA's sub-packages, without importing it."""
    spec = importlib.util.find_spec("apex")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return any(Path(folder, "multi_tensor_apply").is_dir() for folder in folders)


def check_sglang(rollout: RolloutConfig | None = None) -> Check:
    """SGLang is needed where a run starts its own servers; its calls differ between versions.

    Args:
        rollout: of the run that is to start; None when none is named.
    """
    found = installed_version("sglang")
    if found is None:
        if rollout is not None and rollout.engine == "sglang" and not rollout.sglang.urls:
            needed = "absent; rollout.engine = 'sglang' starts servers"
            return Check("SGLang", "fail", needed, "make install-sglang, or give rollout.sglang.urls")
        return Check("SGLang", "ok", "absent; the `local` engine needs nothing")
    if found != TESTED_SGLANG:
        remedy = "if servers fail, install that one: make install-sglang"
        return Check("SGLang", "warn", f"{found}; tested with {TESTED_SGLANG}", remedy)
    return Check("SGLang", "ok", f"{found}, {_router(installed_version('sglang-router'))}")


def _router(found: Version | None) -> str:
    return f"router {found}" if found else "without its router: several servers are asked in turn"


def check_nemo_run() -> Check:
    """nemo-run is needed for launching on clusters only; some versions of leptonai break it."""
    found, leptonai = installed_version("nemo-run"), installed_version("leptonai")
    if found is None:
        return Check("nemo-run", "ok", "absent; needed only to launch on other machines")
    if leptonai is not None and leptonai >= LEPTONAI_BREAKS_NEMO_RUN:
        return Check(
            "nemo-run",
            "fail",
            f"{found} with leptonai {leptonai}: `import nemo_run` fails",
            f"pip install 'leptonai<{LEPTONAI_BREAKS_NEMO_RUN}'",
        )
    return Check("nemo-run", "ok", str(found))
