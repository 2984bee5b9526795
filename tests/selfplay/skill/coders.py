"""Small Qwen2 folders, the kind of model that Qwen2.5-Coder is, for the real engines."""

import itertools
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.data.tokenizer import byte_tokenizer

CODE = "def solver(a=3, b=4):\n    return a + b"
#: Qwen2.5's template ends like this, and knows nothing of thinking.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_random_coder(folder: Path) -> Path:
    """Write a model that answers with bytes in no order."""
    _write(folder, _tokenizer([]), None)
    return folder


def write_coder(folder: Path, *pieces: str, ends: bool = True) -> Path:
    """Write a model that answers every question with these different pieces of text in turn.

    Its weights are set by hand: the hidden state is the last token, and the head names its successor.

    Args:
        ends: whether the end-of-sequence token follows; without it the last piece is repeated.
    """
    tokenizer = _tokenizer(pieces)
    chain = [*tokenizer.encode("\n"), *(tokenizer.convert_tokens_to_ids(piece) for piece in pieces)]
    chain.append(tokenizer.eos_token_id if ends else chain[-1])
    _write(folder, tokenizer, dict(itertools.pairwise(chain)))
    return folder


def _tokenizer(pieces: tuple[str, ...] | list[str]) -> PreTrainedTokenizerFast:
    base = byte_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(base._tokenizer).from_str(base._tokenizer.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    return tokenizer


@torch.no_grad()
def _write(folder: Path, tokenizer: PreTrainedTokenizerFast, successors: dict[int, int] | None) -> None:
    size = -(-len(tokenizer) // 16) * 16
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            initializer_range=0.5,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    ).float()
    if successors is not None:
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token, successor in successors.items():
            model.lm_head.weight[successor, token] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
