"""The nearest old question of new ones, side by side: the extremes and a sample between, to be searched."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_srpo.report.text import cut, visible

Row = Mapping[str, Any]

_SHOWN = 300  # over all iterations; every one is an element that a browser must hold
_FEWEST = 6  # per iteration
_CHARACTERS = 1600  # of a text


def nearest_section(rows: Sequence[Row]) -> str:
    """Return the section for the rows of nearest.jsonl."""
    heading = '<h2 id="nearest-heading">Nearest old question of each new one</h2>'
    if not rows:
        return (
            f'{heading}<p class="missing">None yet: needs valid questions of two iterations, and skills.</p>'
        )
    shown = chosen(rows)
    which = (
        "all of them"
        if len(shown) == len(rows)
        else f"the nearest, the farthest and some between: {len(shown):,}"
    )
    note = (
        f"<code>nearest.jsonl</code> holds {len(rows):,} new questions, each with the nearest one of all "
        f"earlier iterations; here are {which}."
    )
    cards = "".join(_card(row, place) for place, row in enumerate(shown))
    inner = f'{_CONTROLS}<div class="cards">{cards}</div>'
    return f'{heading}<p class="note">{note}</p><div id="nearest">{inner}</div>'


def chosen(rows: Sequence[Row], limit: int = _SHOWN) -> list[Row]:
    """Return the rows for the page, by iteration and falling cosine.

    Of an iteration with too many: a third from its top, a third from its end, and the rest spread evenly.
    """
    own: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        own[row["iteration"]].append(row)
    each = max(_FEWEST, limit // len(own)) if own else 0
    kept: list[Row] = []
    for _, group in sorted(own.items()):
        group.sort(key=lambda row: -row["cosine"])
        kept += group if len(group) <= each else _ends_and_between(group, each)
    return kept


def _ends_and_between(rows: Sequence[Row], count: int) -> list[Row]:
    end = count // 3
    middle, between = rows[end : len(rows) - end], count - 2 * end
    return [
        *rows[:end],
        *(middle[len(middle) * i // between] for i in range(between)),
        *rows[len(rows) - end :],
    ]


def _card(row: Row, place: int) -> str:
    return (
        f'<article class="near" id="n{place}" data-iteration="{row["iteration"]}" '
        f'data-cosine="{float(row["cosine"]):.6f}" data-bleu="{float(row["bleu"]):.6f}" data-place="{place}">'
        f"<p><b>cosine {row['cosine']:.3f}</b> · BLEU {row['bleu']:.3f} · {visible(row['id'])} of iteration "
        f"{row['iteration']} ← {visible(row['old_id'])} of iteration {row['old_iteration']}</p>"
        f'<div class="two">{_side("New", row, "")}{_side("Nearest old", row, "old_")}</div></article>'
    )


def _side(title: str, row: Row, prefix: str) -> str:
    question, code = (visible(cut(row[prefix + name], _CHARACTERS)) for name in ("question", "code"))
    return (
        f'<div><h4>{title}</h4><pre class="response">{question}</pre>'
        f"<details><summary>Code</summary><pre>{code}</pre></details></div>"
    )


# The script fills and shows them; without it they would do nothing.
_CONTROLS = (
    '<div class="controls" id="near-controls" hidden>'
    '<label>Iteration <select id="near-iteration"></select></label>'
    '<label>Order <select id="near-order"></select></label>'
    '<label class="words">Search <input type="search" id="near-words" '
    'placeholder="words in question or code"></label><output id="near-count"></output></div>'
)
