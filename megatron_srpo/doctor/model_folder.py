"""Can this model folder be trained: architecture, weights, tokenizer, chat template?"""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from megatron_srpo.doctor.types import Check
from megatron_srpo.errors import ModelError
from megatron_srpo.model.architecture import Qwen3Architecture, read_hf_config

QUESTION = [{"role": "user", "content": "What is 1 + 1?"}]


def check_model_folder(folder: str | Path) -> list[Check]:
    """Look at a Hugging Face folder: config, weight files, tokenizer against vocabulary, chat template."""
    try:
        architecture = Qwen3Architecture.from_hf_folder(folder)
    except ModelError as error:
        return [Check("model", "fail", str(error), "give the folder of a Qwen3 in Hugging Face format")]
    experts = architecture.experts
    kind = (
        "dense Qwen3"
        if experts is None
        else f"Qwen3 of {experts.count} experts ({experts.per_token} a token)"
    )
    shape = f"{kind}, {architecture.num_layers} layers x {architecture.hidden_size}, "
    return [
        Check("model", "ok", shape + f"vocabulary {architecture.vocab_size}"),
        check_weight_files(folder),
        *check_tokenizer(folder, architecture),
    ]


def check_tokenizer(folder: str | Path, architecture: Qwen3Architecture) -> list[Check]:
    """Load the tokenizer; compare it with the vocabulary and try its chat template."""
    remedy = "copy tokenizer.json and tokenizer_config.json from the model's source into the folder"
    if not Path(folder, "tokenizer.json").is_file():  # transformers would make an empty tokenizer up
        return [Check("tokenizer", "fail", "the folder holds no tokenizer.json", remedy)]
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # boundary: tokenizers raises bare Exception for a damaged file
        return [Check("tokenizer", "fail", f"cannot be loaded: {error!r}", remedy)]
    config = read_hf_config(folder)
    return [check_vocabulary(tokenizer, architecture, config), check_chat(tokenizer)]


def load_tokenizer(folder: str | Path) -> Any:
    """Load the folder's own tokenizer; never asks the network and runs no code from the folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def check_weight_files(folder: str | Path) -> Check:
    """All safetensors files that the folder promises must be there. Their content is checked when loaded."""
    name, index = "weights", Path(folder, "model.safetensors.index.json")
    if not index.is_file():
        if Path(folder, "model.safetensors").is_file():
            return Check(name, "ok", "model.safetensors")
        return Check(
            name, "fail", "no model.safetensors and no index of shards", "download the weights again"
        )
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return Check(name, "fail", f"{index.name} is damaged ({error!r})", "download the file again")
    missing = sorted(file for file in files if not Path(folder, file).is_file())
    if missing:
        return Check(name, "fail", f"missing: {', '.join(missing)}", "download the missing files")
    return Check(name, "ok", f"{len(files)} shards")


def check_vocabulary(tokenizer: Any, architecture: Qwen3Architecture, config: dict[str, Any]) -> Check:
    """Every token id must have an embedding row, and generation must be able to end."""
    name, tokens, rows = "tokenizer", len(tokenizer), architecture.vocab_size
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        return Check(
            name,
            "fail",
            f"highest token id {highest}, but the model has only {rows} embedding rows",
            "use the tokenizer that the model was trained with",
        )
    if tokenizer.eos_token_id is None:
        return Check(name, "fail", "no end-of-sequence token", "set eos_token in tokenizer_config.json")
    ends = config.get("eos_token_id")
    ends = set(ends if isinstance(ends, list) else [ends]) - {None}
    if ends and tokenizer.eos_token_id not in ends:
        return Check(
            name,
            "warn",
            f"its end token is {tokenizer.eos_token_id}; config.json says {sorted(ends)}",
            "make eos_token_id in config.json agree with the tokenizer",
        )
    return Check(name, "ok", f"{tokens} tokens in {rows} rows, end token {tokenizer.eos_token!r}")


def check_chat(tokenizer: Any) -> Check:
    """The chat template must exist and open an assistant turn after the question."""
    name = "chat template"
    remedy = "copy chat_template.jinja (or tokenizer_config.json) from the model's source into the folder"
    if not tokenizer.chat_template:
        return Check(name, "fail", "the tokenizer has none", remedy)
    try:
        without = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=False)
        prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        return Check(name, "fail", f"cannot be applied: {error}", remedy)
    if QUESTION[0]["content"] not in prompt:
        return Check(name, "fail", f"drops the question; it gives {prompt!r}", remedy)
    if prompt == without:
        return Check(name, "fail", "opens no assistant turn (add_generation_prompt has no effect)", remedy)
    return Check(name, "ok", f"opens the answer with {prompt.removeprefix(without)!r}")
