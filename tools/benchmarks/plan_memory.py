"""What the planner predicts of a training step's memory, beside what a real step takes on this machine.

    python -m tools.benchmarks.plan_memory

Each case runs in a process of its own, on one rank: a random Qwen3, one optimizer step to create the
optimizer's state, then a second one whose rise of resident memory is measured. What stays (weights,
gradients, optimizer, teacher, its lessons) is counted from the tensors. glibc's allocator is told to return
large blocks at once (MALLOC_MMAP_THRESHOLD_), so that resident memory follows what is in use.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from megatron_srpo import platform
from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.memory import Memory, stage_memory
from megatron_srpo.planner.shape import ModelShape
from megatron_srpo.planner.workload import Workload

VOCAB_MULTIPLE = 128
#: What resides between steps and can be counted, tensor by tensor.
COUNTED = ("weights", "gradients", "optimizer", "teacher", "lessons")
PROMPT, RESPONSE = 128, 384


@dataclass(frozen=True)
class Case:
    """A model and a batch. Sequences hold 128 + 384 tokens; every second one is distilled.

    Attributes:
        sequences: in each of the two micro-batches.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    sequences: int
    dtype: str = "float32"
    teacher: str = "ema"
    vocabulary_compared: str = "topk"

    @property
    def shape(self) -> ModelShape:
        """The planner's model."""
        return ModelShape(
            "random",
            self.layers,
            self.hidden,
            self.ffn,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.vocabulary,
            self.tied,
        )

    @property
    def workload(self) -> Workload:
        """The planner's step."""
        distils = self.teacher != "none"
        return Workload(
            prompts=2 * self.sequences,
            samples=1,
            prompt_tokens=PROMPT,
            response_tokens=RESPONSE,
            max_response_tokens=RESPONSE,
            micro_batch_tokens=self.sequences * (PROMPT + RESPONSE),
            distilled_share=0.5 if distils else 0.0,
            teacher=self.teacher,
            vocabulary=self.vocabulary_compared,
        )

    def predicted(self) -> Memory:
        """What the planner says of this case on a CPU."""
        layout = Layout(dtype=self.dtype, kernels="local", distributed_optimizer=False)
        assumed = Assumptions(packing_fill=1.0)
        return stage_memory(self.shape, layout, self.workload, assumed, 0, VOCAB_MULTIPLE, device="cpu")


CASES = {
    "wide": Case(3, 384, 1152, 6, 2, 64, 4096, True, 2),
    "deep": Case(10, 192, 576, 6, 2, 32, 2048, True, 2),
    "untied": Case(3, 256, 768, 4, 2, 64, 16384, False, 2),
    "large head": Case(2, 128, 256, 4, 4, 32, 50048, True, 2, vocabulary_compared="full"),
    "no teacher": Case(4, 256, 768, 4, 4, 64, 4096, True, 3, teacher="none"),
    "bf16": Case(4, 384, 1152, 6, 2, 64, 4096, True, 2, dtype="bfloat16"),
}


def measure(case: Case) -> dict[str, float]:
    """Make two optimizer steps; return counted bytes by part, and the peak rise in the second as "step"."""
    import torch

    from tools.benchmarks.plan_memory_step import make_trainer, samples, storage_bytes

    platform.init_distributed(60.0)
    trainer = make_trainer(case)
    batch, taught = samples(trainer, case)
    trainer.update(batch, taught)
    gc.collect()
    counted = storage_bytes(trainer, taught)
    meter = platform.MemoryMeter(give_back=True)
    trainer.update(batch, taught)
    rise = meter.rise()
    torch.distributed.destroy_process_group()
    return {**counted, "step": float(rise or 0)}


def measured(name: str) -> dict[str, float]:
    """Run one case in a process of its own."""
    command = [sys.executable, "-m", "tools.benchmarks.plan_memory", "--case", name]
    environment = platform.child_environment({"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"case {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str) -> dict[str, tuple[float, float]]:
    """Return (predicted, measured) bytes by part; "step" is what the update adds at its peak."""
    found, memory = measured(name), CASES[name].predicted()
    expected = {part: size for part, size in asdict(memory).items() if part in COUNTED}
    expected["step"] = memory.activations + memory.loss + memory.working
    return {part: (expected[part], found[part]) for part in (*COUNTED, "step")}


def rows(names: Iterable[str]) -> list[str]:
    """Return a Markdown table."""
    lines = ["| case | part | predicted, MiB | measured, MiB | error |", "|---|---|---|---|---|"]
    for name in names:
        for part, (expected, found) in compare(name).items():
            error = f"{expected / found - 1:+.1%}" if found else "-"
            lines.append(f"| {name} | {part} | {expected / 2**20:.1f} | {found / 2**20:.1f} | {error} |")
    return lines


def main() -> None:
    """Print the table of all cases, or measure one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, help="measure this one here and print its bytes as JSON")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(CASES[arguments.case])))
    else:
        print("\n".join(rows(CASES)))


if __name__ == "__main__":
    main()
