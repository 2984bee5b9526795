"""A lane that runs TRL's trainer: `python -m tools.benchmarks.trl_side SPEC` (see lane.py).

GRPO: `trl.GRPOTrainer`. SDPO: `trl.experimental.sdpo.SDPOTrainer`. Both sample with transformers' `generate`,
in fp32 on the CPU. :func:`trl_settings` holds every setting, derived from our run configuration.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.registry import load_verifier
from megatron_srpo.rewards.scoring import score_response
from tools.benchmarks.lane import BenchmarkError, Gate, LaneSpec, RankFacts, pin
from tools.benchmarks.workload import Workload, benchmark_config, make_workload

#: Our algorithm -> TRL's trainer. SRPO has no counterpart there.
TRAINERS = {"grpo": ("trl", "GRPO"), "sdpo": ("trl.experimental.sdpo", "SDPO")}


def require_trl() -> None:
    """Raise BenchmarkError where TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise BenchmarkError("TRL is not installed; install it with `make install-bench`")


def check_micro_batch(responses: int, world: int, micro_batch: int) -> int:
    """Return the accumulation steps of a rank, refusing sizes that do not come out even.

    Raises:
        BenchmarkError: names the sizes.
    """
    if responses % (world * micro_batch):
        raise BenchmarkError(
            f"{responses} responses per step cannot be cut into micro-batches of {micro_batch} on {world} "
            f"processes; give a --trl-micro-batch that divides {responses // world}"
        )
    return responses // (world * micro_batch)


def trl_settings(config: RunConfig, steps: int, world: int, micro_batch: int) -> dict[str, Any]:
    """Return the arguments of TRL's GRPOConfig or SDPOConfig for the same work.

    Raises:
        BenchmarkError: no such trainer in TRL, or a micro-batch that does not divide the batch.
    """
    if config.algorithm.name not in TRAINERS:
        raise BenchmarkError(
            f"algorithm.name = {config.algorithm.name} has no TRL trainer; "
            f"compare one of {', '.join(TRAINERS)}"
        )
    rollout = config.rollout
    own = {"grpo": _grpo_settings, "sdpo": _sdpo_settings}[config.algorithm.name](config)
    return {
        "max_steps": steps,
        "num_generations": rollout.samples_per_prompt,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": check_micro_batch(rollout.responses_per_step, world, micro_batch),
        "max_completion_length": rollout.max_response_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": 0,
        "num_iterations": 1,
        "shuffle_dataset": False,
        "chat_template_kwargs": {"enable_thinking": config.data.thinking},
        "seed": config.seed,
        **_optimizer_settings(config),
        **_machine_settings(),
        **own,
    }


def _optimizer_settings(config: RunConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    return {
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.epsilon,
        "max_grad_norm": optimizer.grad_clip,
        "beta": 0.0,
        "loss_type": "dapo",  # every token of the batch weighs the same, as in ours
        "scale_rewards": "group" if config.algorithm.policy.normalize_by_std else "none",
        "epsilon": config.algorithm.policy.clip_low,
        "epsilon_high": config.algorithm.policy.clip_high,
    }


def _machine_settings() -> dict[str, Any]:
    """What makes TRL fast on a CPU: fp32 (bf16 is emulated on many), nothing recomputed, logged or saved."""
    return {
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
        "use_vllm": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
    }


def _grpo_settings(config: RunConfig) -> dict[str, Any]:
    return {}


def _sdpo_settings(config: RunConfig) -> dict[str, Any]:
    distillation, teacher = config.algorithm.distillation, config.teacher
    kinds = {"ema": "ema", "live": "live", "frozen": "base"}
    if teacher.mode not in kinds or distillation.vocabulary == "sampled":
        raise BenchmarkError(
            f"teacher.mode = {teacher.mode} with vocabulary = {distillation.vocabulary} is not compared; "
            "take teacher.mode ema, live or frozen, and vocabulary topk or full"
        )
    topk = distillation.vocabulary == "topk"
    return {
        "max_prompt_length": config.data.max_prompt_tokens,
        "distillation_alpha": distillation.alpha,
        "distillation_mode": "topk_logits" if topk else "full_logits",
        "distillation_topk": distillation.top_k if topk else None,
        "distillation_add_tail": distillation.tail,
        "distillation_is_clip": distillation.importance_cap,
        "distillation_weight": 1.0,
        "teacher_model_kind": kinds[teacher.mode],
        "teacher_update_rate": teacher.ema_rate,
        "success_reward_threshold": config.algorithm.success_threshold,
        "max_reprompt_len": config.data.teacher.max_prompt_tokens,
        "remove_thinking_from_demonstration": True,
        "diagnostics_warning_interval": 0,
    }


class StepLog:
    """Collects what a rank did in the current step."""

    def __init__(self, samples: int, rank: int) -> None:
        self.samples, self.rank = samples, rank
        self.facts = RankFacts(phases={"generate": 0.0, "reward": 0.0})

    def generating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap TRL's generation, whose first argument is the prompts' token ids, each repeated per sample."""

        def timed(prompt_ids: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(prompt_ids, *args, **kwargs)
            self.facts.phases["generate"] += time.perf_counter() - started
            self.facts.prompts += self._prompts(prompt_ids)
            return result

        return timed

    def _prompts(self, prompt_ids: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
        count = len(prompt_ids) // self.samples
        groups = [prompt_ids[i * self.samples : (i + 1) * self.samples] for i in range(count)]
        for group in groups:
            if any(list(ids) != list(group[0]) for ids in group):
                raise BenchmarkError("TRL's samples of one prompt do not lie side by side")
        return [(self.rank * count + i, tuple(group[0])) for i, group in enumerate(groups)]

    def take(self, wall: float) -> RankFacts:
        """Return the step's facts and start anew; what is neither sampling nor reward is training."""
        facts = self.facts
        facts.phases["train"] = wall - facts.phases["generate"] - facts.phases["reward"]
        self.facts = RankFacts(phases={"generate": 0.0, "reward": 0.0})
        return facts


def make_reward(workload: Workload, log: StepLog) -> Callable[..., list[float]]:
    """Return a TRL reward function: our verifiers, in this process, and a count of the responses."""
    config = workload.config.reward

    def verifier_reward(
        completions: Sequence[Sequence[dict[str, str]]],
        completion_ids: Sequence[Sequence[int]],
        step: Sequence[int],
        place: Sequence[int],
        **_: Any,
    ) -> list[float]:
        started = time.perf_counter()
        log.facts.responses += len(completions)
        log.facts.response_tokens += sum(len(ids) for ids in completion_ids)
        prompts = [workload.batches[s][p] for s, p in zip(step, place, strict=True)]
        texts = [messages[-1]["content"] for messages in completions]
        values = [
            score_response(load_verifier(prompt.task), prompt, text, config).value
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        log.facts.phases["reward"] += time.perf_counter() - started
        return values

    return verifier_reward


def dataset_rows(batches: Sequence[Sequence[Prompt]]) -> list[dict[str, Any]]:
    """Return TRL's data set: one row per prompt, in the order in which our loop takes them."""
    return [
        {"prompt": [dict(message) for message in prompt.messages], "step": step, "place": place}
        for step, batch in enumerate(batches)
        for place, prompt in enumerate(batch)
    ]


class Steps(TrainerCallback):
    """Opens the gate before every optimizer step and closes it after."""

    def __init__(self, gate: Gate, log: StepLog) -> None:
        self.gate, self.log = gate, log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the word to make the first step."""
        self.gate.open()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step; wait for the word to make the next one, which begins with reading its prompts."""
        self.gate.close(self.log.take(time.perf_counter() - self.gate.started[0]))
        if state.global_step < state.max_steps:
            self.gate.open()


def build_trainer(workload: Workload, settings: dict[str, Any], log: StepLog) -> Any:
    """Return TRL's trainer, ready to train, with its sampling and rewards observed."""
    import datasets

    module, name = TRAINERS[workload.config.algorithm.name]
    library = importlib.import_module(module)
    trainer = getattr(library, f"{name}Trainer")(
        model=workload.config.model.path,
        reward_funcs=make_reward(workload, log),
        args=getattr(library, f"{name}Config")(**settings),
        train_dataset=datasets.Dataset.from_list(dataset_rows(workload.batches)),
    )
    sampling = {"GRPO": "_generate_single_turn", "SDPO": "_generate_transformers"}[name]
    setattr(trainer, sampling, log.generating(getattr(trainer, sampling)))
    return trainer


def main(path: str) -> None:
    """Run the lane whose spec lies at ``path``."""
    spec = LaneSpec.load(path)
    pin(spec)
    require_trl()
    import torch

    from megatron_srpo import platform

    torch.set_num_threads(spec.threads)
    workload = make_workload(benchmark_config(spec.config, spec.overrides), spec.steps)
    place = platform.rank_environment()
    settings = trl_settings(workload.config, spec.steps, spec.ranks, spec.micro_batch)
    log = StepLog(workload.config.rollout.samples_per_prompt, place.rank if place else 0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(workload, {**settings, "output_dir": folder}, log)
        gate = Gate(spec)
        trainer.add_callback(Steps(gate, log))  # last: TRL's own callbacks (the teacher's average) count
        gate.ready({**settings, "threads": spec.threads, "processes": spec.ranks})
        trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
