"""All checks, in the order in which they are shown."""

from megatron_srpo import platform
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.doctor.communication import check_communication
from megatron_srpo.doctor.machine import (
    check_accelerator,
    check_disk,
    check_fp8,
    check_loss_kernels,
    check_memory,
    check_threads,
)
from megatron_srpo.doctor.megatron_config import check_layout_of_model, check_megatron_config
from megatron_srpo.doctor.model_folder import check_model_folder
from megatron_srpo.doctor.packages import check_optional_packages, check_python, check_requirements
from megatron_srpo.doctor.run_config import check_layers, describe_run
from megatron_srpo.doctor.types import Check
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture


def run_checks(config_path: str | None = None, model_folder: str | None = None) -> list[Check]:
    """Check the machine and the packages, then the config and the model folder if they are named.

    Args:
        config_path: YAML of a run: checked, and read for the model folder, the ranks and the output folder.
        model_folder: Hugging Face folder to check instead of the config's.
    """
    config, checks = None, []
    if config_path is not None:
        config, check = check_config(config_path)
        checks.append(check)
    if config is None:
        checks += check_model(model_folder) if model_folder is not None else []
        return [*check_packages(None), *check_machine(1, "."), *checks]
    checks += [
        *check_model(model_folder or config.model.path, config),
        *describe_run(config, platform.has_cuda()),
    ]
    machine = check_machine(config.parallel.fewest_ranks, config.output_dir)
    return [*check_packages(config.rollout), *machine, *checks]


def check_model(folder: str, config: RunConfig | None = None) -> list[Check]:
    """Look at a model folder, and at what Megatron-Core would make of it in a run's layout."""
    checks = check_model_folder(folder)
    if checks[0].status == "fail":
        return checks
    layout, model, recompute = ParallelConfig(), ModelConfig(path=folder), "none"
    if config is not None:
        layout, model, recompute = config.parallel, config.model, config.training.recompute
        checks.append(check_layout_of_model(Qwen3Architecture.from_hf_folder(folder), layout))
        if checks[-1].status == "fail":
            return checks
    layers, check = check_layers(model, platform.accelerator())
    return [*checks, check, check_megatron_config(folder, model, layout, recompute, layers)]


def check_packages(rollout: RolloutConfig | None = None) -> list[Check]:
    """Python, the required packages and the optional ones."""
    return [check_python(), *check_requirements(), *check_optional_packages(platform.has_cuda(), rollout)]


def check_machine(ranks: int, output: str) -> list[Check]:
    """Device, communication between processes, threads, memory and disk."""
    return [
        check_accelerator(),
        check_loss_kernels(),
        check_fp8(),
        check_communication(),
        check_threads(ranks),
        check_memory(),
        check_disk(output),
    ]


def check_config(path: str) -> tuple[RunConfig | None, Check]:
    """Build the configuration of a run from its file; ``None`` when it is refused."""
    try:
        return load_config(RunConfig, path), Check("config", "ok", path)
    except ConfigError as error:
        return None, Check("config", "fail", str(error), "correct the config file and run again")
