"""Time the local engine against plain ``model.generate()`` on the same requests, side by side.

Both draw from the whole distribution at temperature 1 and return log-probs. A random model rarely ends a
response by itself, so a share of the token ids, spread over the vocabulary, is declared end-of-sequence
(``--stop-share``): response lengths are then geometric with mean about 1 / share. Left out: tokenization and
scoring. On a busy machine look at the CPU seconds.

    python -m tools.benchmarks.bench_local_engine            # a random 1.3 M-parameter Qwen3
    python -m tools.benchmarks.bench_local_engine --model FOLDER --prompts 32 --samples 8
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.types import Request, SamplingParams


def main() -> None:
    """Run the comparison and print one table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or write_random_model(Path(scratch))
        stops = stop_tokens(folder, arguments.stop_share)
        engine = LocalEngine(folder, batch_size=arguments.batch_size, stop_tokens=stops)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    requests = make_requests(arguments, engine.model.config.vocab_size)
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=arguments.new_tokens)
    rows = {
        "local engine": lambda: run_engine(engine, requests, sampling),
        "generate(), one call": lambda: run_generate(plain, requests, sampling, stops, len(requests)),
        "generate(), batches of 64": lambda: run_generate(plain, requests, sampling, stops, 64),
    }
    print(f"{len(requests)} requests, {arguments.prompts} prompts, at most {arguments.new_tokens} new tokens")
    print_table({name: measure(run, arguments.repeats) for name, run in rows.items()})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: a random small Qwen3")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--shortest", type=int, default=30, help="tokens of the shortest prompt")
    parser.add_argument("--longest", type=int, default=80, help="tokens of the longest prompt")
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--stop-share", type=float, default=0.03)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_random_model(folder: Path) -> Path:
    """Write a random Qwen3 of 1.3 M parameters: 4 layers, hidden size 128, tied vocabulary of 4096."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def stop_tokens(folder: Path, share: float) -> list[int]:
    """Return evenly spread token ids that make up ``share`` of the vocabulary."""
    size = Qwen3Config.from_pretrained(folder).vocab_size
    return list(range(0, size, max(1, round(1 / share)))) if share > 0 else [0]


def make_requests(arguments: argparse.Namespace, vocab_size: int) -> list[Request]:
    """Make random prompts with several seeds each."""
    generator = random.Random(0)
    requests = []
    for prompt in range(arguments.prompts):
        length = generator.randint(arguments.shortest, arguments.longest)
        tokens = tuple(generator.randrange(vocab_size) for _ in range(length))
        for sample in range(arguments.samples):
            seed = request_seed(0, "benchmark", 0, prompt, sample)
            requests.append(Request(f"{prompt}/{sample}", tokens, seed))
    return requests


def run_engine(engine: LocalEngine, requests: Sequence[Request], sampling: SamplingParams) -> int:
    """Return the number of tokens sampled by the local engine."""
    return sum(len(completion.tokens) for completion in engine.generate(requests, sampling))


@torch.inference_mode()
def run_generate(
    model: Qwen3ForCausalLM,
    requests: Sequence[Request],
    sampling: SamplingParams,
    stops: list[int],
    size: int,
) -> int:
    """Return the number of tokens sampled by ``generate()`` with left padding, log-probs included."""
    torch.manual_seed(0)
    count = 0
    for start in range(0, len(requests), size):
        ids, mask = left_pad([request.prompt_tokens for request in requests[start : start + size]])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = out.sequences[:, ids.shape[1] :]
        for position, logits in enumerate(out.logits):
            torch.log_softmax(logits.float(), dim=-1).gather(-1, new[:, position, None])
        count += count_tokens(new, stops)
    return count


def left_pad(prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def count_tokens(new_NT: torch.Tensor, stops: list[int]) -> int:
    """Count tokens up to and including the first stop token of each row."""
    stop_NT = torch.isin(new_NT, torch.tensor(stops))
    before_NT = stop_NT.cumsum(dim=1) - stop_NT.long()
    return int((before_NT == 0).sum())


def measure(run: Callable[[], int], repeats: int) -> tuple[float, float, int]:
    """Return median wall and CPU seconds after one warm-up, and the tokens of the last run."""
    tokens = run()
    wall, cpu = [], []
    for _ in range(repeats):
        starts = time.perf_counter(), time.process_time()
        tokens = run()
        wall.append(time.perf_counter() - starts[0])
        cpu.append(time.process_time() - starts[1])
    return statistics.median(wall), statistics.median(cpu), tokens


def print_table(results: dict[str, tuple[float, float, int]]) -> None:
    """Print seconds and tokens; the last column is the first row's tokens per CPU second over this row's."""
    _, base_cpu, base_tokens = next(iter(results.values()))
    print(f"{'':28}{'wall s':>9}{'CPU s':>9}{'tokens':>9}{'tok/CPU-s':>11}{'engine is':>11}")
    for name, (wall, cpu, tokens) in results.items():
        ratio = (base_tokens / base_cpu) / (tokens / cpu)
        print(f"{name:28}{wall:9.3f}{cpu:9.3f}{tokens:9d}{tokens / cpu:11.0f}{ratio:10.2f}x")


if __name__ == "__main__":
    main()
