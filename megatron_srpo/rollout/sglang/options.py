"""From configuration to the command line of a server, checked against the SGLang that is installed."""

import importlib.util
import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

from megatron_srpo import platform
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError

#: What SGLang needs to be told on a machine without CUDA. Each may be overridden by ``sglang.options``.
CPU_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_overlap_schedule": True,
    "cuda_graph_backend_decode": "disabled",
    "cuda_graph_backend_prefill": "disabled",
    "skip_server_warmup": True,
    # Otherwise an idle scheduler keeps one core busy.
    "sleep_on_idle": True,
    # Shares of main memory: the servers of a test stand beside trainer ranks.
    "mem_fraction_static": 0.1,
    "max_total_tokens": 32768,
}
_CHECK_TIMEOUT_S = 300.0


def server_options(config: SGLangConfig, model_path: str, dtype: str) -> dict[str, Any]:
    """Return all options of a server but its address, as ``{SGLang's name: value}``.

    Args:
        model_path: folder of the model.
        dtype: type of the model, for ``config.dtype = "auto"``.
    """
    ours: dict[str, Any] = {
        "model_path": model_path,
        "tp_size": config.tensor_parallel,
        "dtype": dtype if config.dtype == "auto" else config.dtype,
    }
    if config.expert_parallel > 1:
        ours["ep_size"] = config.expert_parallel
    if config.quantization:
        ours["quantization"] = config.quantization
    if config.mem_fraction is not None:
        ours["mem_fraction_static"] = config.mem_fraction
    theirs = {name.replace("-", "_"): value for name, value in config.options.items()}
    return {**({} if platform.has_cuda() else CPU_DEFAULTS), **ours, **theirs}


def server_arguments(config: SGLangConfig, model_path: str, dtype: str) -> list[str]:
    """Return the command line of a server but for its address, every option checked.

    SGLang is asked in a process of its own (some seconds): importing it would fill the trainer.

    Raises:
        EngineError: SGLang is not installed, or does not know an option or refuses its value.
    """
    require_sglang()
    try:
        options = json.dumps(server_options(config, model_path, dtype))
    except TypeError as error:
        raise EngineError(f"sglang.options holds something that is not plain data: {error}") from error
    return list(_ask(options))


@lru_cache(maxsize=64)
def _ask(options: str) -> tuple[str, ...]:
    """Return the command line of options given as JSON. What SGLang said once, it says again."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "megatron_srpo.rollout.sglang.serve", "--check"],
            input=options,
            env=platform.sglang_environment(None, 1),
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
        )
        answer = json.loads(asked.stdout)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"SGLang did not say within {_CHECK_TIMEOUT_S:g} s which options it knows"
        ) from error
    except json.JSONDecodeError as error:
        raise EngineError(f"SGLang cannot be imported here:\n{asked.stderr[-3000:]}") from error
    if "error" in answer:
        raise EngineError(answer["error"])
    return tuple(answer["arguments"])


def require_sglang() -> None:
    """Raise EngineError unless SGLang is installed."""
    if importlib.util.find_spec("sglang") is None:
        raise EngineError(
            "rollout.engine = 'sglang' needs SGLang, which is not installed: make install-sglang"
        )
