"""The ``local`` engine: a transformers model in the trainer's own process.

It needs no server and starts at once, which makes it the default on machines without a GPU and in tests.
It is not SGLang: it decodes fixed batches, without continuous batching or paging.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.decode import DecodeBatch
from megatron_srpo.rollout.engine import Parallelism, ProgressCallback
from megatron_srpo.rollout.kv_cache import ATTENTION
from megatron_srpo.rollout.types import Completion, FinishReason, Request, SamplingParams, VersionSpan
from megatron_srpo.rollout.vocabulary import Vocabulary


class LocalEngine:
    """A :class:`~megatron_srpo.rollout.engine.RolloutEngine` that samples in this process.

    A request's tokens depend on its seed, its prompt and the weights, not on the requests beside it, up to
    the rounding of matrix products of other sizes (about 1e-6 of a probability in fp32).
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        *,
        vocab_limit: int | None = None,
        stop_tokens: Sequence[int] | None = None,
    ) -> None:
        """Load a Hugging Face folder (config and safetensors).

        Args:
            folder: model folder on this machine.
            dtype: type of weights and key-value cache.
            device: where the model lives.
            batch_size: most responses decoded together; bounds the key-value cache.
            vocab_limit: number of token ids in use (the tokenizer's length). Ids above it are the embedding's
                padding and are never sampled; log-probs stay normalised over the whole ``config.vocab_size``.
                Default: all.
            stop_tokens: ids that end a response; default: ``eos_token_id`` of generation config or config.

        Raises:
            EngineError: unreadable folder, tensors that do not fit the config, no end-of-sequence token, or a
                batch size or vocabulary limit out of range.
        """
        if batch_size < 1:
            raise EngineError(f"batch_size = {batch_size}; give at least 1")
        self._model: PreTrainedModel | None = load_model(Path(folder), dtype).to(device)
        self._home = device
        stops = default_stop_tokens(self._model) if stop_tokens is None else stop_tokens
        self._vocabulary = Vocabulary.of(self._model.config.vocab_size, vocab_limit, stops)
        self._batch_size = batch_size
        self._version = 0
        self._mixed = False

    @property
    def parallelism(self) -> Parallelism:
        """Every rank holds an engine and takes a share."""
        return "every_rank"

    @property
    def weight_version(self) -> int:
        """Version of the last successful update; 0 after loading."""
        return self._version

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model. Raises EngineError after :meth:`close`."""
        if self._model is None:
            raise EngineError("the local engine is closed; make a new one")
        return self._model

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Answer every request, in the order given; see :meth:`RolloutEngine.generate`."""
        model = self.model
        if self._mixed:
            raise EngineError(
                "the last weight update failed and left a mixture of weights "
                f"(last good version {self._version}); update the weights again before generating"
            )
        for request in requests:
            self._check(request, sampling, model)
        progress = _Progress(len(requests), on_progress)
        answers: list[Completion | None] = [None] * len(requests)
        for places in decode_order(requests, self._batch_size):
            batch = [requests[place] for place in places]
            for place, completion in zip(places, self._decode(batch, sampling, progress), strict=True):
                answers[place] = completion
        return [answer for answer in answers if answer is not None]

    def update_weights(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights by ``tensors``, full tensors under their Hugging Face names, in any order.

        Nothing is generated from a mixture: a failed update leaves the engine refusing to generate until one
        succeeds.

        A tied output head may be given, left out, or given alone; when both are given they must be equal.
        """
        if version < self._version:
            raise EngineError(f"weight version {version} is older than the engine's {self._version}")
        model = self.model
        self._mixed = True  # until the last tensor is in: an exception on the way leaves it so
        copy_weights(model, tensors)
        self._mixed, self._version = False, version

    def move_to(self, device: torch.device | str | None) -> None:
        """Move the model to another device, or (None) back to the one that it was made for."""
        self.model.to(self._home if device is None else device)

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    def _decode(
        self, batch: list[Request], sampling: SamplingParams, progress: "_Progress"
    ) -> list[Completion]:
        sampled = DecodeBatch(self.model, batch, sampling, self._vocabulary).run(progress.add)
        reasons: list[FinishReason] = ["stop" if stopped else "length" for stopped in sampled.stopped]
        return [
            Completion(
                request.id,
                tuple(tokens),
                tuple(log_probs),
                reason,
                (VersionSpan(self._version, len(tokens)),),
            )
            for request, tokens, log_probs, reason in zip(
                batch, sampled.tokens, sampled.log_probs, reasons, strict=True
            )
        ]

    def _check(self, request: Request, sampling: SamplingParams, model: PreTrainedModel) -> None:
        self._vocabulary.check_prompt(request)
        prompt, limit = request.prompt_tokens, model.config.max_position_embeddings
        if len(prompt) + sampling.max_new_tokens > limit:
            raise EngineError(
                f"request {request.id!r}: {len(prompt)} prompt + {sampling.max_new_tokens} new tokens "
                f"exceed the model's {limit} positions (max_position_embeddings); shorten the prompt "
                "or lower max_new_tokens"
            )


class _Progress:
    """Counts finished requests over all batches of a call."""

    def __init__(self, total: int, callback: ProgressCallback | None) -> None:
        self.done, self.total, self.callback = 0, total, callback

    def add(self, count: int) -> None:
        if self.callback is None:
            return
        for _ in range(count):
            self.done += 1
            self.callback(self.done, self.total)


def decode_order(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Cut the requests' places into batches of nearly equal size.

    Sorted by prompt, shortest first: prompts of one batch have similar lengths (little padding) and the
    samples of one prompt lie side by side (one prefill).
    """
    if not requests:
        return []
    order = sorted(
        range(len(requests)),
        key=lambda place: (len(requests[place].prompt_tokens), requests[place].prompt_tokens),
    )
    size = math.ceil(len(order) / math.ceil(len(order) / batch_size))
    return [order[start : start + size] for start in range(0, len(order), size)]


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model for generation.

    Raises:
        EngineError: unreadable folder, or tensors missing from it, unknown to the config or of another shape
            (transformers itself would fill them with random numbers and go on).
    """
    if not (folder / "config.json").is_file():
        raise EngineError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the tensor's name
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"cannot load the model in {folder}: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise EngineError(
                f"{folder} does not fit its config.json: {kind} {sorted(map(str, report[kind]))}"
            )
    return model.eval().requires_grad_(False)


def default_stop_tokens(model: PreTrainedModel) -> list[int]:
    """Return the end-of-sequence ids of the generation config, or else of the model config.

    Raises:
        EngineError: neither names one, so that no response could end.
    """
    generation: GenerationConfig = model.generation_config
    for ids in (generation.eos_token_id, model.config.eos_token_id):
        if ids is not None:
            return [ids] if isinstance(ids, int) else list(ids)
    raise EngineError("the model has no eos_token_id; add it to generation_config.json, or give stop_tokens")


@torch.no_grad()
def copy_weights(model: PreTrainedModel, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Copy full tensors into the model's parameters by their Hugging Face names.

    Raises:
        EngineError: a tensor that is unknown, of another shape, given twice (also as its tied twin) with
            different values, or missing.
    """
    parameters = hf_parameters(model)
    written: dict[int, str] = {}
    for name, tensor in tensors:
        target = parameters.get(name)
        if target is None:
            raise EngineError(f"weight update: the model has no tensor {name!r}")
        if target.shape != tensor.shape:
            raise EngineError(
                f"weight update: {name} has shape {tuple(tensor.shape)}, expected {tuple(target.shape)}"
            )
        tensor = tensor.to(target.device, target.dtype)
        twin = written.get(id(target))
        if twin is not None and not torch.equal(target, tensor):
            raise EngineError(
                f"weight update: {name} differs from {twin} given before for the same parameter"
            )
        target.copy_(tensor)
        written[id(target)] = name
    # A tied tensor has two names, of which one is enough.
    missing = sorted({id(t): name for name, t in parameters.items() if id(t) not in written}.values())
    if missing:
        raise EngineError(f"weight update: {len(missing)} tensors are missing: {', '.join(missing[:5])}")


def hf_parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the model's parameters by the names of its files.

    transformers 5 joins all experts of a layer into two tensors; an expert's matrices are views of them here.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        experts, _, kind = name.rpartition(".")
        if not experts.endswith(".experts"):
            found[name] = parameter
            continue
        kinds = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[kind]
        for expert, matrix in enumerate(parameter.detach()):
            parts = zip(kinds, matrix.chunk(len(kinds)), strict=True)
            found |= {f"{experts}.{expert}.{part}.weight": view for part, view in parts}
    return found
