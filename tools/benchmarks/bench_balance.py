"""Measures what dealing the work out over replicas is worth: one skewed batch, with and without, in turns.

    python -m tools.benchmarks.bench_balance --config examples/quickstart.yaml --replicas 2 --rounds 5

Made-up tokens through the real trainer of the config (scoring, teacher, one optimizer step): 4 prompts x 8
responses per replica. Every prompt has a typical response length of its own (log-normal), so that replicas
differ as they do with easy and hard problems; every second response is distilled. Seconds are processor
seconds of a replica's process: on a shared machine, waiting and other programs are not in them. "slowest /
mean" adds the slowest replica of either part (before the update; the update) up and divides by the mean.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.algorithms.types import TokenStreams
from megatron_srpo.commands.common import add_config_arguments, positive_integer, run_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import initialize_parallel
from megatron_srpo.model.precision import LOCAL
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.session.models import build_dealer, build_trainer
from megatron_srpo.training.exchange import gather_over_replicas
from megatron_srpo.training.microbatches import TokenSequence
from megatron_srpo.training.shared_work import ReplicaWork, SharedWork, WorkDealer
from megatron_srpo.training.trainer import Trainer

PROMPTS, SAMPLES, PROMPT_TOKENS, HINT_TOKENS = 4, 8, 60, 80
TYPICAL, LONGEST, SPREAD_OF_PROMPTS, SPREAD_WITHIN = 150.0, 800, 0.9, 0.4
PARTS = ("before", "update", "exchange")
HEAD = (
    "| balance | predicted slowest / mean | measured | slowest, s | mean, s | exchange, s |",
    "|---|---|---|---|---|---|",
)


@dataclass
class Seconds:
    """One step on one replica: processor seconds of its parts, and the prediction."""

    predicted: float = 1.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what runs inside to a part."""
        start = time.process_time()
        yield
        self.parts[name] += time.process_time() - start


def rollouts(arch: Qwen3Architecture, replica: int) -> list[tuple[TokenSequence, TokenSequence]]:
    """Make a replica's sequences: as the policy sees them, and as the teacher does."""
    generator = torch.Generator().manual_seed(replica)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, arch.vocab_size, (count,), generator=generator).tolist())

    made = []
    for _ in range(PROMPTS):
        prompt, hint = tokens(PROMPT_TOKENS), tokens(HINT_TOKENS)
        typical = TYPICAL * float(torch.randn((), generator=generator).mul(SPREAD_OF_PROMPTS).exp())
        for _ in range(SAMPLES):
            length = typical * float(torch.randn((), generator=generator).mul(SPREAD_WITHIN).exp())
            response = tokens(max(1, min(LONGEST, round(length))))
            made.append((TokenSequence(prompt, response), TokenSequence(prompt + hint, response)))
    return made


def streams(sequence: TokenSequence, distilled: bool) -> TokenStreams:
    """Give every token the same part in the loss."""
    one = torch.ones(len(sequence.response))
    policy, distill = (one * 0, one) if distilled else (one, one * 0)
    return TokenStreams(one, policy, distill, one, one, one)


def step(trainer: Trainer, dealer: WorkDealer, work: ReplicaWork) -> Seconds:
    """Make one step as the loop does; a collective of all replicas."""
    seconds = Seconds()
    with seconds.part("exchange"):
        shared: SharedWork = dealer.deal(work)
    with seconds.part("before"):
        scores = trainer.score(shared.to_score)
        reference = trainer.score_reference(shared.to_train)
        taught = trainer.teach(shared.to_teach)
    with seconds.part("exchange"):
        old, evidence = shared.bring_home(scores, taught)
        own = [streams(sequence, index in evidence) for index, sequence in enumerate(work.sequences)]
        (samples,) = shared.samples(own, old, reference, taught)
    with seconds.part("update"):
        trainer.update(samples, taught)
    seconds.predicted = shared.slowest
    return seconds


def measure(config: RunConfig, rounds: int) -> str:
    """Take turns with and without; return the table (the same on every rank)."""
    arch = Qwen3Architecture.from_hf_folder(config.model.path)
    groups = initialize_parallel(config.parallel.tensor, PipelineStages.of(config.parallel))
    trainer = build_trainer(config, arch, groups, LOCAL)
    dealer = build_dealer(config, arch, groups)
    own = rollouts(arch, groups.dp_rank)
    lessons = {index: lesson for index, (_, lesson) in enumerate(own) if index % 2}
    work = ReplicaWork([sequence for sequence, _ in own], lessons, [True] * len(own), len(own))
    tokens = gather_over_replicas(sum(len(sequence.response) for sequence, _ in own), groups)
    found: dict[bool, list[list[Seconds]]] = {False: [], True: []}
    for number in range(rounds + 1):
        for balance in (False, True):
            dealer.balance = balance
            dist.barrier()
            every = gather_over_replicas(step(trainer, dealer, work), groups)
            if number:  # the first round warms up
                found[balance].append(every)
    rows = [_row(balance, runs) for balance, runs in found.items()]
    return "\n".join([f"response tokens by replica: {tokens}; medians of {rounds} rounds", *HEAD, *rows])


def _row(balance: bool, runs: list[list[Seconds]]) -> str:
    def median(number: Callable[[list[Seconds]], float]) -> float:
        return statistics.median(number(run) for run in runs)

    def slowest(run: list[Seconds]) -> float:
        return sum(max(one.parts[part] for one in run) for part in PARTS[:2])

    def mean(run: list[Seconds]) -> float:
        return sum(statistics.mean(one.parts[part] for one in run) for part in PARTS[:2])

    ratio = median(lambda run: slowest(run) / mean(run))
    exchange = median(lambda run: max(one.parts["exchange"] for one in run))
    name, predicted = "on" if balance else "off", runs[0][0].predicted
    seconds = f"{median(slowest):.2f} | {median(mean):.2f} | {exchange:.3f}"
    return f"| {name} | {predicted:.3f} | {ratio:.3f} | {seconds} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--replicas", type=positive_integer, default=2, help="replicas (%(default)s)")
    parser.add_argument("--rounds", type=positive_integer, default=5, help="timed steps each (%(default)s)")
    parsed = parser.parse_args(given)
    parsed.overrides = ["parallel.tensor=1", *parsed.overrides]
    config = run_config(parsed)
    if platform.rank_environment() is None:
        ranks = str(config.parallel.replica * parsed.replicas)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
        script = ["-m", "tools.benchmarks.bench_balance", *given]
        return subprocess.call([*command, *script], env=platform.child_environment())
    place = platform.init_distributed(config.training.distributed_timeout_s)
    table = measure(config, parsed.rounds)
    if place.rank == 0:
        print(table)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
