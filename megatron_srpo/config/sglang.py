"""Configuration of the SGLang servers that sample rollouts."""

import re
from dataclasses import dataclass
from typing import Any

from megatron_srpo.config.base import Config, option
from megatron_srpo.errors import ConfigError

#: SGLang options that other keys set, by the name under which SGLang knows them.
OWNED_OPTIONS = {
    "model": "model.path",
    "model_path": "model.path",
    "host": "sglang.host",
    "port": "nothing: a free port is chosen",
    "tp_size": "sglang.tensor_parallel",
    "tensor_parallel_size": "sglang.tensor_parallel",
    "ep_size": "sglang.expert_parallel",
    "expert_parallel_size": "sglang.expert_parallel",
    "ep": "sglang.expert_parallel",
    "dtype": "sglang.dtype",
    "quantization": "sglang.quantization",
    "mem_fraction_static": "sglang.mem_fraction",
    "api_key": "sglang.api_key_file (external servers), or nothing: managed servers get a random key",
    "admin_api_key": "nothing: the servers' one key is for the trainer",
    "config": "sglang.options",
}

_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/:@?#\[\]]+)(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, kw_only=True)
class SGLangConfig(Config):
    """SGLang servers: started here, external ones by URL, or others' that say in a folder where they are.

    On GPUs, SGLang heeds the seeds of requests only with ``options: {enable_deterministic_inference: true}``;
    without it sampling is faster and not reproducible. Without CUDA, seeds are always heeded.
    """

    servers: int = option(
        1, "Servers to start on this machine; with a registry, the number of its slots.", minimum=1
    )
    tensor_parallel: int = option(1, "Ranks that share one server's weights.", minimum=1)
    expert_parallel: int = option(
        1, "Groups of these ranks that share out the experts; divides tensor_parallel.", minimum=1
    )
    urls: tuple[str, ...] = option((), "External servers (http://host:port); then none is started here.")
    registry: str = option(
        "",
        "Folder in which servers of other machines register (megatron-srpo serve), shared by all machines; "
        "none is started here. They may be lost and come back.",
    )
    router: str = option(
        "auto",
        "SGLang's router before several servers; auto: if there are several, it is installed, and they are "
        "not registered ones.",
        choices=("auto", "on", "off"),
    )
    host: str = option(
        "127.0.0.1", "Address on which servers and router listen; others than loopback are reachable."
    )
    dtype: str = option(
        "auto", "Type of the servers' weights; auto: the model's.", choices=("auto", "float32", "bfloat16")
    )
    quantization: str = option("", "SGLang's quantization of the weights, e.g. fp8; empty: none.")
    mem_fraction: float | None = option(
        None, "Share of memory for weights and cache; null: SGLang chooses.", minimum=0.01, maximum=0.99
    )
    options: dict[str, Any] = option(
        help="Other SGLang server options by their own names, e.g. {chunked_prefill_size: 4096}.",
        factory=dict,
    )
    start_timeout_s: float = option(600.0, "Seconds until a started server must serve.", minimum=1.0)
    return_timeout_s: float = option(
        1800.0, "Seconds that a run without any server left waits for one to register.", minimum=1.0
    )
    hang_timeout_s: float = option(300.0, "Seconds without a sign of life: frozen.", minimum=1.0)
    request_timeout_s: float = option(3600.0, "Seconds that one request may take.", minimum=1.0)
    max_concurrency: int = option(256, "Most requests that wait at one server.", minimum=1)
    max_restarts: int = option(3, "Restarts of one server before the run ends.", minimum=0)
    straggler_timeout_s: float = option(
        0.0, "Seconds after which unfinished responses of a batch are cut off; 0: never.", minimum=0.0
    )
    api_key_file: str = option("", "File with the API key of external servers.")
    log_tail_lines: int = option(40, "Lines of a server's log shown in an error.", minimum=1)

    def validate(self) -> None:
        """Refuse malformed URLs, keys that contradict one another, and options that other keys set."""
        for url in self.urls:
            _check_url(url)
        if len(set(self.urls)) < len(self.urls):
            raise ConfigError(f"SGLangConfig.urls = {self.urls!r} names a server twice")
        for name in self.options:
            owner = OWNED_OPTIONS.get(name.replace("-", "_"))
            if owner is not None:
                raise ConfigError(f"SGLangConfig.options.{name} is not set here; use {owner}")
        if self.tensor_parallel % self.expert_parallel:
            raise ConfigError(
                f"SGLangConfig.expert_parallel = {self.expert_parallel} does not divide tensor_parallel = "
                f"{self.tensor_parallel}; choose a part of it"
            )
        if self.urls and self.registry:
            raise ConfigError(
                f"SGLangConfig.registry = {self.registry!r}, but urls names servers too; give one of them"
            )
        if self.urls:
            self._validate_external()
        elif self.api_key_file:
            raise ConfigError(
                f"SGLangConfig.api_key_file = {self.api_key_file!r} is for external servers, but urls is "
                "empty; other servers get a random key"
            )

    def _validate_external(self) -> None:
        """With external servers, keys that shape servers started here would be silently ignored."""
        for name, value in (
            ("servers", 1),
            ("quantization", ""),
            ("mem_fraction", None),
            ("options", {}),
            ("router", "auto"),
            ("dtype", "auto"),
        ):
            if vars(self)[name] != value:
                raise ConfigError(
                    f"SGLangConfig.{name} = {vars(self)[name]!r} is for servers started here, but urls names "
                    "external ones; give it to them when they are started"
                )


def is_url(text: str) -> bool:
    """Say whether a text is scheme, host and perhaps a port, and no more."""
    found = _URL.fullmatch(text)
    return found is not None and int(found["port"] or 1) in range(1, 65536)


def _check_url(url: str) -> None:
    if not is_url(url):
        raise ConfigError(
            f"SGLangConfig.urls has {url!r}; give scheme, host and port, e.g. http://localhost:30000"
        )
