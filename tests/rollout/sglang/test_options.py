"""The command line of a server, asked of the SGLang that is installed."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from megatron_srpo import platform
from megatron_srpo.config.sglang import OWNED_OPTIONS, SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import options
from megatron_srpo.rollout.sglang.options import CPU_DEFAULTS, server_arguments, server_options
from tests.sglang_servers import TINY_MODEL, require_sglang

MODEL = str(TINY_MODEL)

#: Answers each line of standard input, so that SGLang is imported once for all tests.
ASK = """
import json, sys
from megatron_srpo import platform
platform.prepare_sglang()
from megatron_srpo.rollout.sglang.serve import check
for line in sys.stdin:
    print("answer " + json.dumps(check(json.loads(line))), flush=True)
"""


@cache
def asked() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ASK],
        env=platform.sglang_environment(None, 1),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def check() -> Callable[..., dict[str, Any]]:
    """Asks the installed SGLang about options."""
    require_sglang()

    def ask(**given: Any) -> dict[str, Any]:
        process = asked()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline().removeprefix("answer "))

    return ask


@pytest.fixture(scope="module", autouse=True)
def end_of_asking() -> Any:
    yield
    if asked.cache_info().currsize:
        asked().communicate(timeout=60)


class TestMerging:
    def test_our_keys_become_sglangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "has_cuda", lambda: True)
        config = SGLangConfig(tensor_parallel=4, quantization="fp8", mem_fraction=0.7, options={"a-b": 1})
        assert server_options(config, "m", "bfloat16") == {
            "model_path": "m",
            "tp_size": 4,
            "dtype": "bfloat16",
            "quantization": "fp8",
            "mem_fraction_static": 0.7,
            "a_b": 1,
        }

    def test_expert_parallelism_is_named_where_there_is_some(self) -> None:
        assert "ep_size" not in server_options(SGLangConfig(), "m", "float32")
        options = server_options(SGLangConfig(tensor_parallel=4, expert_parallel=2), "m", "float32")
        assert (options["tp_size"], options["ep_size"]) == (4, 2)

    def test_on_a_gpu_sglang_decides_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "has_cuda", lambda: True)
        assert server_options(SGLangConfig(), "m", "float32") == {
            "model_path": "m",
            "tp_size": 1,
            "dtype": "float32",
        }

    def test_a_type_that_is_asked_for_beats_the_models(self) -> None:
        assert server_options(SGLangConfig(dtype="bfloat16"), "m", "float32")["dtype"] == "bfloat16"

    @pytest.mark.parametrize("name", sorted(set(CPU_DEFAULTS) - set(OWNED_OPTIONS)))
    def test_every_default_without_cuda_can_be_overridden(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platform, "has_cuda", lambda: False)
        assert server_options(SGLangConfig(), "m", "float32")[name] == CPU_DEFAULTS[name]
        config = SGLangConfig(options={name.replace("_", "-"): "mine"})
        assert server_options(config, "m", "float32")[name] == "mine"

    def test_the_memory_default_yields_to_its_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "has_cuda", lambda: False)
        assert server_options(SGLangConfig(mem_fraction=0.3), "m", "float32")["mem_fraction_static"] == 0.3


class TestCheck:
    @pytest.mark.parametrize(
        ("given", "arguments"),
        [
            ({"chunked_prefill_size": 128}, ["--chunked-prefill-size=128"]),
            ({"chunked_prefill_size": -1}, ["--chunked-prefill-size=-1"]),
            ({"schedule_conservativeness": 0.5}, ["--schedule-conservativeness=0.5"]),
            ({"log_level": "debug"}, ["--log-level=debug"]),
            ({"enable_metrics": True}, ["--enable-metrics"]),
            ({"enable_metrics": False}, []),
            ({"lora_target_modules": ["q_proj", "k_proj"]}, ["--lora-target-modules", "q_proj", "k_proj"]),
            ({"json_model_override_args": {"a": 1}}, ['--json-model-override-args={"a": 1}']),
            # An alias is the same option.
            ({"tp_size": 2}, ["--tp-size=2"]),
            ({"tensor_parallel_size": 2}, ["--tp-size=2"]),
            ({}, []),
        ],
    )
    def test_what_becomes_of_an_option(
        self, check: Callable[..., dict[str, Any]], given: dict[str, Any], arguments: list[str]
    ) -> None:
        assert check(**given) == {"arguments": arguments}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"chunk_prefill_size": 1}, "did you mean chunked_prefill_size"),
            ({"zzzzzz": 1}, "SGLang 0.5.23 has no such option; see python -m sglang.launch_server --help"),
            ({"help": True}, "has no such option"),
            ({"chunked_prefill_size": "many"}, "chunked_prefill_size = 'many' is refused by SGLang"),
            ({"chunked_prefill_size": 1.5}, "invalid int value: '1.5'"),
            ({"chunked_prefill_size": True}, "expects a value, not true or false"),
            ({"chunked_prefill_size": None}, "invalid int value: 'None'"),
            ({"enable_metrics": "yes"}, "enable_metrics = 'yes'; SGLang expects true or false"),
            ({"load_format": "parchment"}, "invalid choice: 'parchment'"),
            ({"log_level": "info", "bogus": 2}, "sglang.options.bogus"),
        ],
    )
    def test_what_is_refused(
        self, check: Callable[..., dict[str, Any]], given: dict[str, Any], message: str
    ) -> None:
        assert message in check(**given)["error"]

    def test_defaults_without_cuda_are_options_of_this_sglang(
        self, check: Callable[..., dict[str, Any]]
    ) -> None:
        answer = check(**CPU_DEFAULTS)
        assert "--disable-overlap-schedule" in answer["arguments"]

    def test_owned_options_are_options_of_this_sglang(self, check: Callable[..., dict[str, Any]]) -> None:
        """A name that SGLang does not know need not be refused by the configuration."""
        for name in OWNED_OPTIONS:
            assert "no such option" not in check(**{name: "1"}).get("error", "")


class TestAsking:
    @pytest.fixture(autouse=True)
    def nothing_was_asked(self) -> None:
        options._ask.cache_clear()

    def test_a_whole_command_line(self) -> None:
        require_sglang()
        arguments = server_arguments(SGLangConfig(options={"max_total_tokens": 99}), MODEL, "float32")
        assert f"--model-path={MODEL}" in arguments and "--dtype=float32" in arguments
        assert "--max-total-tokens=99" in arguments
        assert not any(argument.startswith(("--port", "--host", "--api-key")) for argument in arguments)

    def test_the_same_is_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        answering = [sys.executable, "-c", 'print(\'{"arguments": ["--a"]}\')']
        run, asked = subprocess.run, []
        monkeypatch.setattr(
            subprocess, "run", lambda command, **settings: asked.append(command) or run(answering, **settings)
        )
        for dtype in ("float32", "bfloat16", "float32"):
            assert server_arguments(SGLangConfig(), MODEL, dtype) == ["--a"]
        assert len(asked) == 2

    def test_an_unknown_option(self) -> None:
        require_sglang()
        with pytest.raises(
            EngineError, match=r"sglang\.options\.max_total_token: .* did you mean max_total_tokens"
        ):
            server_arguments(SGLangConfig(options={"max_total_token": 99}), MODEL, "float32")

    def test_an_option_that_is_not_plain_data(self) -> None:
        require_sglang()
        with pytest.raises(EngineError, match="not plain data"):
            server_arguments(SGLangConfig(options={"log_level": object()}), MODEL, "float32")

    def test_without_sglang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(EngineError, match="needs SGLang, which is not installed: make install-sglang"):
            server_arguments(SGLangConfig(), MODEL, "float32")

    def test_an_sglang_that_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        failing = [sys.executable, "-c", "raise ImportError('libnothing.so: no such file')"]
        run = subprocess.run
        monkeypatch.setattr(subprocess, "run", lambda command, **settings: run(failing, **settings))
        with pytest.raises(EngineError, match=r"SGLang cannot be imported here:(.|\n)*libnothing\.so"):
            server_arguments(SGLangConfig(), MODEL, "float32")

    def test_an_sglang_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(options, "_CHECK_TIMEOUT_S", 0.2)
        waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
        run = subprocess.run
        monkeypatch.setattr(subprocess, "run", lambda command, **settings: run(waiting, **settings))
        with pytest.raises(EngineError, match=r"did not say within 0\.2 s"):
            server_arguments(SGLangConfig(), MODEL, "float32")
