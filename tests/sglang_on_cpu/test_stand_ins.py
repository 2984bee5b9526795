"""The stand-ins, in a process of their own: they are for SGLang's processes and would mislead others."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch

from megatron_srpo import platform, sglang_on_cpu
from megatron_srpo.sglang_on_cpu import install, plugin

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-ins are not used with CUDA")
with_sglang = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="needs SGLang (make install-sglang)"
)

#: Each line is evaluated after the stand-ins are in place; what it raises is its answer.
PROBE = """
import json, sys
from megatron_srpo import platform
platform.prepare_sglang()
platform.prepare_sglang()

def answer(text):
    try:
        names = {}
        *first, last = text.split(";")
        exec(";".join(first), names)
        return repr(eval(last.strip(), names))
    except Exception as error:
        return type(error).__name__ + ": " + str(error)

print(json.dumps([answer(text) for text in json.load(sys.stdin)]))
"""

QUESTIONS = {
    "kernel": "import sgl_kernel; sgl_kernel.weight_packed_linear_cpu.__name__",
    "kernel called": "import sgl_kernel; sgl_kernel.weight_packed_linear_cpu(1)",
    "kernel of a GPU": "import sgl_kernel; sgl_kernel.rmsnorm",
    "kernel imported": "from sgl_kernel import fp8_scaled_mm; 1",
    "kernel submodule": "import sgl_kernel.scalar_type; 1",
    "trainer": "import megatron.core; 1",
    "image class": "from torchvision.transforms import InterpolationMode; InterpolationMode.BICUBIC",
    "image class built": "from torchvision.transforms import Resize; Resize(3)",
    "image subclass": "from torchvision.transforms import Resize; type('Mine', (Resize,), {}).__name__",
    "image function": "import torchvision.io; torchvision.io.read_image('x')",
    "image dunder": "import torchvision; torchvision.__version__",
    "transformers": "from transformers.utils import is_torchvision_available; is_torchvision_available()",
    "triton decorator": "import triton; triton.jit(len)([1, 2])",
    "triton language": "import triton.language as tl; tl.constexpr(3).value",
    "triton error": "from triton.runtime.autotuner import OutOfResources as E; issubclass(E, Exception)",
    "torch": "from torch.utils._triton import has_triton_package; has_triton_package()",
    "hooks": (
        "from megatron_srpo import platform; platform.sglang_plugin();"
        "from sglang.srt.plugins.hook_registry import HookRegistry; sorted(HookRegistry._hooks)"
    ),
    "attention": (
        "from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS;"
        "ATTENTION_BACKENDS['torch_native'].__module__"
    ),
}


@cache
def answers() -> dict[str, str]:
    """Ask all at once: importing SGLang takes seconds."""
    asked = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(list(QUESTIONS.values())),
        env=platform.sglang_environment(None, 1),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(zip(QUESTIONS, json.loads(asked.stdout.splitlines()[-1]), strict=True))


@without_cuda
@with_sglang
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("kernel", "'weight_packed_linear_cpu'"),
        (
            "kernel called",
            "NotImplementedError: sgl_kernel.weight_packed_linear_cpu has no build for this processor",
        ),
        ("kernel of a GPU", "AttributeError: sgl_kernel has no rmsnorm on this machine"),
        ("image class", "'bicubic'"),
        ("image class built", "NotImplementedError: torchvision is not available to SGLang on this machine"),
        ("image subclass", "'Mine'"),
        (
            "image function",
            "NotImplementedError: torchvision.io.read_image is not available to SGLang on this machine",
        ),
        ("image dunder", "AttributeError: __version__"),
        # transformers' own image code must not believe the stand-in.
        ("transformers", "False"),
    ],
)
def test_what_importers_see(question: str, expected: str) -> None:
    assert answers()[question] == expected


@without_cuda
@with_sglang
@pytest.mark.parametrize(
    ("question", "error"),
    # SGLang probes for each and relies on ImportError, of which ModuleNotFoundError is one.
    [
        ("kernel imported", "ImportError"),
        ("kernel submodule", "ModuleNotFoundError"),
        ("trainer", "ModuleNotFoundError"),
    ],
)
def test_what_importers_must_not_find(question: str, error: str) -> None:
    assert answers()[question].startswith(error)


@without_cuda
@with_sglang
@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="needs a machine without Triton")
@pytest.mark.parametrize(
    ("question", "expected"),
    [("triton decorator", "2"), ("triton language", "3"), ("triton error", "True"), ("torch", "False")],
)
def test_triton(question: str, expected: str) -> None:
    assert answers()[question] == expected


@without_cuda
@with_sglang
def test_the_plugin_hooks_what_it_says() -> None:
    assert answers()["hooks"] == repr(
        [
            "sglang.srt.layers.moe.topk.TopK.forward_cpu",
            "sglang.srt.layers.sampler.sampling_from_probs_torch",
            "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch",
            "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
        ]
    )
    assert answers()["attention"] == "'megatron_srpo.sglang_on_cpu.attention'"


def test_the_plugin_does_nothing_in_processes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang loads it everywhere on the machine: in its offline engine, on GPUs, in servers of others."""
    calls: list[Any] = []
    monkeypatch.setattr(plugin, "register", lambda: calls.append(1))
    assert not sglang_on_cpu.is_installed()
    platform.sglang_plugin()
    assert calls == []
    monkeypatch.delitem(sys.modules, "megatron_srpo.sglang_on_cpu")
    platform.sglang_plugin()
    assert calls == []


def test_the_plugin_acts_where_the_stand_ins_are(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(plugin, "register", lambda: calls.append(1))
    monkeypatch.setattr(sglang_on_cpu, "is_installed", lambda: True)
    platform.sglang_plugin()
    assert calls == [1]


def test_nothing_is_installed_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = list(sys.meta_path)
    platform.prepare_sglang()
    assert sys.meta_path == before
    assert "sgl_kernel" not in sys.modules
    with pytest.raises(RuntimeError, match="machine with CUDA"):
        install()


def test_without_sglang_the_triton_stand_in_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_srpo.sglang_on_cpu import triton

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="make install-sglang"):
        triton._load_stand_in()


def test_another_sglang_without_its_stand_in_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from megatron_srpo.sglang_on_cpu import triton

    found = importlib.machinery.ModuleSpec("sglang", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ImportError, match=r"_platform_stubs\.py does not exist in this SGLang"):
        triton._load_stand_in()
