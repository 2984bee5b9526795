"""What the servers' configuration refuses, and with which words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.config.sglang import OWNED_OPTIONS, SGLangConfig
from megatron_srpo.errors import ConfigError


def test_defaults_are_one_private_server() -> None:
    config = SGLangConfig()
    assert (config.servers, config.tensor_parallel, config.urls) == (1, 1, ())
    assert (config.host, config.dtype, config.router) == ("127.0.0.1", "auto", "auto")
    assert config.options == {}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:30000",
        "https://engine",
        "http://node-7:1",
        "http://[::1]:30000",
        "http://a:65535",
    ],
)
def test_urls_of_external_servers(url: str) -> None:
    assert SGLangConfig(urls=(url,), api_key_file="key").urls == (url,)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:30000",
        "ftp://host:1",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://host:65536",
        "http://host:30000/",
        "http://host:30000/generate",
        "http://user:secret@host:30000",
        "http://host:30000 ",
        "http://ho st:30000",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="give scheme, host and port") as caught:
        SGLangConfig(urls=("http://good:1", url))
    assert repr(url) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_url_or_a_clear_error(url: str) -> None:
    try:
        SGLangConfig(urls=(url,))
    except ConfigError as error:
        assert "SGLangConfig.urls" in str(error)
    else:
        assert url.startswith(("http://", "https://"))


def test_a_server_named_twice() -> None:
    with pytest.raises(ConfigError, match="twice"):
        SGLangConfig(urls=("http://a:1", "http://b:1", "http://a:1"))


@pytest.mark.parametrize("name", sorted(OWNED_OPTIONS))
def test_options_that_other_keys_set(name: str) -> None:
    for spelling in {name, name.replace("_", "-")}:
        with pytest.raises(ConfigError, match=f"options.{spelling} is not set here; use ") as caught:
            SGLangConfig(options={spelling: 1})
        assert OWNED_OPTIONS[name] in str(caught.value)


def test_keys_named_as_remedies_exist() -> None:
    """A remedy that names a key of this section must name a real one."""
    for remedy in OWNED_OPTIONS.values():
        for word in remedy.replace(",", " ").split():
            if word.startswith("sglang."):
                assert word.removeprefix("sglang.") in SGLangConfig.__dataclass_fields__


def test_other_options_are_left_to_sglang() -> None:
    options = {"chunked_prefill_size": 4096, "enable_metrics": True, "no_such_option": [1]}
    assert SGLangConfig(options=options).options == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("servers", 2),
        ("quantization", "fp8"),
        ("mem_fraction", 0.5),
        ("options", {"log_level": "debug"}),
        ("router", "on"),
        ("router", "off"),
        ("dtype", "bfloat16"),
    ],
)
def test_external_servers_are_not_configured_here(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"SGLangConfig.{name} = .* is for servers started here"):
        SGLangConfig(**{"urls": ("http://a:1",), name: value})


def test_a_key_file_is_for_external_servers() -> None:
    with pytest.raises(ConfigError, match=r"api_key_file = 'key'.*other servers get a random key"):
        SGLangConfig(api_key_file="key")


def test_a_router_may_stand_before_one_server() -> None:
    """A launch starts one on each of several nodes: the run's own number says nothing."""
    assert SGLangConfig(router="on").router == "on"


def test_expert_groups_are_made_of_tensor_parallel_ranks() -> None:
    with pytest.raises(ConfigError, match="expert_parallel = 3 does not divide tensor_parallel = 4"):
        SGLangConfig(tensor_parallel=4, expert_parallel=3)
    assert SGLangConfig(tensor_parallel=4, expert_parallel=2).expert_parallel == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("servers", 0),
        ("tensor_parallel", 0),
        ("mem_fraction", 0.0),
        ("mem_fraction", 1.0),
        ("start_timeout_s", 0.0),
        ("hang_timeout_s", 0.5),
        ("request_timeout_s", 0.0),
        ("max_concurrency", 0),
        ("max_restarts", -1),
        ("straggler_timeout_s", -1.0),
        ("log_tail_lines", 0),
        ("dtype", "float16"),
        ("router", "yes"),
        ("urls", ("http://a:1", 3)),
        ("options", ["a"]),
    ],
)
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"SGLangConfig.{name}"):
        SGLangConfig(**{name: value})
