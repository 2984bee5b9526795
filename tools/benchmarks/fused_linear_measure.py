"""What is measured of one variant of a fused linear loss, and against which numbers it is held.

Seconds and memory are those of one forward and backward pass over all tokens. Extra memory is the peak less
what stood there before (the inputs) and less the two gradients that are returned: on a GPU of what PyTorch
has allocated (libraries' own memory, as cuBLAS's workspace, is in it at the first pass only), on a CPU of the
resident memory of a process of its own. The accumulator of the variant "ours-trained" is an input: a trainer
holds it anyway. Shapes: T tokens, H hidden size, V vocabulary.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_srpo import platform
from tools.benchmarks.fused_linear_variants import JSD, PLAIN, Builder, Inputs, Setting

#: Tokens that are checked against float64, and our chunks there: several, the last one ragged.
CHECK_TOKENS = 48
CHECK_CHUNK = 20
#: How many rows of a gradient are compared.
_ROWS = 64
#: Most that the loss, and the norm of the rows of a gradient, may be off, relative to themselves.
#: float32: a logit is a sum of up to 4096 products and a log-normaliser one of 1e5 terms, each good to 1e-7,
#: so 1e-7 to 1e-5 is what plain PyTorch shows; ten times that is a defect. bfloat16: logits of size 2 to 8,
#: rounded to 8 bits by those who round them, give gradients that are off by up to 1 %, and by up to 4 % where
#: log-probabilities are rounded too or gradients are added up in bfloat16; a wrong formula is off by more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
#: Tokens per product when the rate of matrix products is measured; a GPU takes all.
_GEMM_TOKENS = 256
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
_GPU_REPEATS = 5
#: The three matrix products; each is 2 T H V operations.
GEMMS = ("logits", "hidden gradient", "head gradient")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """The loss and some rows of both gradients, in float64."""

    loss: float
    hidden: Array
    head: Array


def outcome_of(loss: Tensor, inputs: Inputs) -> Outcome:
    """Take evenly spread rows of the gradients, and of the head's also those of the first targets."""
    hidden_TH, weight_VH = inputs.hidden_TH.grad, inputs.head_gradient()
    assert hidden_TH is not None and weight_VH is not None, "backward must give both gradients"
    rows = torch.cat([_spread(len(weight_VH)).to(inputs.target_T.device), inputs.target_T[:_ROWS]]).unique()
    tokens = _spread(len(hidden_TH)).to(rows.device)
    return Outcome(float(loss.detach()), _float64(hidden_TH[tokens]), _float64(weight_VH[rows]))


def _spread(length: int) -> Tensor:
    return torch.arange(0, length, max(1, length // _ROWS))


def _float64(rows: Tensor) -> Array:
    return rows.double().cpu().numpy()


def differences(found: Outcome, expected: Outcome) -> dict[str, float]:
    """Return how far loss and gradients are off, relative to what is expected (norms of the gradients)."""
    return {
        "loss": abs(found.loss - expected.loss) / abs(expected.loss),
        "hidden": _relative(found.hidden, expected.hidden),
        "head": _relative(found.head, expected.head),
    }


def _relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def disagreement(found: Mapping[str, float], tolerance: float) -> str | None:
    """Say which difference exceeds the tolerance (or is not a number); None if all agree."""
    worst = [f"{name} off by {value:.2g}" for name, value in found.items() if not value <= tolerance]
    return f"{', '.join(worst)} (allowed {tolerance:.0e})" if worst else None


@dataclass(frozen=True)
class Step:
    """One timed forward and backward pass.

    Attributes:
        seconds: by the clock.
        processor: seconds of this process's threads; on a GPU those of its host.
        extra_bytes: see the module; None where it cannot be measured.
    """

    seconds: float
    processor: float
    extra_bytes: int | None
    outcome: Outcome


class Stand:
    """One variant with its inputs.

    Args:
        warmed: its first pass of a shape is not timed.
    """

    def __init__(self, build: Builder, setting: Setting, inputs: Inputs, warmed: bool = False) -> None:
        self._build, self._setting, self._inputs = build, setting, inputs
        self._loss, self._cold = build(setting), warmed

    def check(self) -> Outcome:
        """Compute the first few tokens, ours in small chunks. Also warms up everything but large memory."""
        few = self._inputs.slice(min(CHECK_TOKENS, self._inputs.tokens))
        loss = self._build(Setting(self._setting.device, CHECK_CHUNK))(few)
        loss.backward()
        return outcome_of(loss, few)

    def step(self) -> Step:
        """Make one timed pass; on a GPU another one before it, so that clocks and allocator are warm."""
        self._inputs.forget_gradients()  # left by a variant that failed halfway
        if self._cold or self._setting.device == "cuda":
            self._pass()
            self._inputs.forget_gradients()
            self._cold = False
        meter = platform.MemoryMeter(give_back=True, on_device=self._setting.device == "cuda")
        started, processor = self._now(), time.process_time()
        loss = self._pass()
        seconds, processor = self._now() - started, time.process_time() - processor
        rise = meter.rise()
        outcome = outcome_of(loss, self._inputs)
        returned = self._inputs.returned_bytes()
        self._inputs.forget_gradients()
        return Step(seconds, processor, None if rise is None else max(0, rise - returned), outcome)

    def _pass(self) -> Tensor:
        loss = self._loss(self._inputs)
        loss.backward()
        return loss

    def _now(self) -> float:
        if self._setting.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def reference(operation: str, inputs: Inputs) -> Outcome:
    """Compute the first few tokens in float64, by plain PyTorch."""
    few = inputs.slice(min(CHECK_TOKENS, inputs.tokens)).double()
    loss = PLAIN[operation](few)
    loss.backward()
    return outcome_of(loss, few)


class Machine:
    """The rates that bound every variant: matrix products of the same shapes and type, and copies."""

    def __init__(self, inputs: Inputs, device: str) -> None:
        self._device = device
        tokens = inputs.tokens if device == "cuda" else min(inputs.tokens, _GEMM_TOKENS)
        self._hidden_CH = inputs.hidden_TH.detach()[:tokens]
        self._weight_VH = inputs.weight_VH.detach()
        # Written once here: the first touch of fresh memory costs more than the product.
        self._logits_CV = self._hidden_CH @ self._weight_VH.t()
        self._out_CH, self._out_VH = torch.ones_like(self._hidden_CH), torch.ones_like(self._weight_VH)

    def rates(self) -> dict[str, float]:
        """Return operations per second of the three products."""
        hidden_CH, weight_VH, logits_CV = self._hidden_CH, self._weight_VH, self._logits_CV
        calls = (
            lambda: torch.mm(hidden_CH, weight_VH.t(), out=logits_CV),
            lambda: torch.mm(logits_CV, weight_VH, out=self._out_CH),
            lambda: torch.mm(logits_CV.t(), hidden_CH, out=self._out_VH),
        )
        operations = 2.0 * logits_CV.numel() * hidden_CH.shape[1]
        return {name: operations / self._seconds(call) for name, call in zip(GEMMS, calls, strict=True)}

    def copy_rate(self) -> float:
        """Return bytes read and written per second by a large copy."""
        source = torch.ones(_COPY_BYTES[self._device], dtype=torch.uint8, device=self._device)
        target = torch.ones_like(source)
        return 2.0 * source.nbytes / self._seconds(lambda: target.copy_(source))

    def _seconds(self, call: Callable[[], Tensor]) -> float:
        """Return the seconds of a call: once on a CPU (its turn comes again), else a mean after a warm-up."""
        if self._device != "cuda":
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        call()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(_GPU_REPEATS):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / _GPU_REPEATS


def floor_seconds(
    operation: str, tokens: int, hidden: int, vocabulary: int, rates: Mapping[str, float]
) -> float:
    """Return the seconds of the matrix products alone: three, and the teacher's logits for ``jsd``."""
    one = 2.0 * tokens * hidden * vocabulary
    names = (*GEMMS, GEMMS[0]) if operation == JSD else GEMMS
    return sum(one / rates[name] for name in names)
