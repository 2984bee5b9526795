"""What the coder model is asked. The wording is this project's; its demands are those of arXiv 2602.13103."""

import hashlib
import json

SYSTEM = "You turn word problems into short abstract Python functions. You answer with code only."

RULES = """\
Rewrite the question below as one Python function named `solver` that computes its answer.
- Every number of the question becomes an argument with that number as its default value.
- Names say what a quantity does in the calculation. No person, place, object or unit of the story appears.
- No comments, no docstring, no imports, no other function, no printing, no randomness. Functions of \
mathematics such as gcd, sqrt or comb may be called by their names.
- Only the steps of the solution count: questions that are solved in the same way give the same function.
Answer with exactly one ```python block and nothing else."""

EXAMPLE_QUESTION = (
    "A bakery fills 14 trays with 9 rolls each. By noon 38 rolls have been sold, and the rest is packed into "
    "bags of 8. How many bags are full?"
)
EXAMPLE_CODE = """\
```python
def solver(groups=14, group_size=9, removed=38, pack_size=8):
    remaining = groups * group_size - removed
    return remaining // pack_size
```"""


def messages(question: str) -> tuple[dict[str, str], ...]:
    """Return the chat that asks for one question's code, with one solved example before it."""
    return (
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": _ask(EXAMPLE_QUESTION)},
        {"role": "assistant", "content": EXAMPLE_CODE},
        {"role": "user", "content": _ask(question)},
    )


def digest() -> str:
    """Return a few characters that change with the prompt: code of other prompts is another measurement."""
    return hashlib.sha256(json.dumps(messages("")).encode()).hexdigest()[:8]


def _ask(question: str) -> str:
    return f"{RULES}\n\nQuestion:\n{question}"
