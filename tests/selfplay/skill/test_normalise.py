"""The rule-based coder: same structure, same code; another operation, other code."""

import ast
import keyword
import random
from collections import defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_srpo.selfplay.arithmetic import FAMILIES, sample
from megatron_srpo.selfplay.skill.normalise import MOST_LEAVES, RuleBasedCoder, normalise
from megatron_srpo.selfplay.skill.parse import parse_code
from megatron_srpo.selfplay.skill.words import operation_words

TABLE = {
    "a + b": [
        "What is 3 + 4?",
        "Compute 1,250 + 37.5.",
        "Add 3 to 4.",
        "Find the sum of 12 and 7.",
        "Anna has 3 apples and buys 4 more. How many does she have?",
        "A farmer keeps 12 cows and 30 sheep. How many animals does he keep in all?",
        "Tom read twelve pages on Monday and seven on Tuesday. How many pages is that altogether?",
        "What is 5 more than 12?",
        r"Evaluate $17 + 4$.",
    ],
    "a - b": [
        "What is 9 \u2212 4?",
        "Subtract 4 from 9.",
        "Find the difference between 9 and 4.",
        "What is 5 less than 12?",
        "Ben has 20 marbles and loses 6. How many are left?",
        "A tank holds 90 litres. 25 litres leak out. How many litres remain?",
        "Mia has 15 stamps and Paul has 9. How many more stamps does Mia have?",
    ],
    "a * b": [
        "What is 6 \u00d7 7?",
        r"Compute $6 \times 7$.",
        "Find the product of 6 and 7.",
        "Multiply 6 by 7.",
        "There are 6 boxes with 7 eggs each. How many eggs are there?",
        "A hall has 12 rows of 9 seats. How many seats does it have?",
        "Each of 5 children has 3 pens. How many pens is that in total?",
        "A car drives 60 km per hour for 3 hours. How far does it go?",
    ],
    "a / b": [
        "What is 12 / 4?",
        "Divide 12 by 4.",
        r"Evaluate \frac{12}{4}.",
        "Lisa shares 24 sweets equally among 6 friends. How many does each get?",
        "Sara packs 30 books into 5 equal boxes. How many are in each box?",
        "Sara packs 30 books into boxes of 5. How many boxes are there?",
    ],
    "a % b": [
        "What is 17 mod 5?",
        "What is the remainder when 17 is divided by 5?",
        "Tom packs 17 eggs into boxes of 6. How many eggs are left over?",
    ],
    "max(a, b)": ["Which is larger, 3 or 8?", "What is the maximum of 3 and 8?", "Find max(3, 8)."],
    "min(a, b)": ["Which is smaller, 3 or 8?", "Find the minimum of 3 and 8."],
    "gcd(a, b)": [
        "Find the greatest common divisor of 12 and 18.",
        "What is the highest common factor of 6 and 4?",
    ],
    "lcm(a, b)": ["What is the least common multiple of 4 and 6?", "Compute lcm(4, 6)."],
    "(a + b) / 2": ["What is the average of 4 and 10?", "Compute (4 + 10) / 2."],
    "(a + b + c) / 3": ["Find the mean of 4, 10 and 13.", "What is (4 + 10 + 13) / 3?"],
    "percent(a, b)": ["What is 20% of 50?", "Find 20 percent of 50."],
    "a ** 2": ["What is the square of 7?", "What is 7 squared?", "Compute 7^2."],
    "sqrt(a)": ["What is the square root of 49?", r"Compute $\sqrt{49}$."],
    "a * b - c": [
        "A farmer has 5 rows of 8 trees. He cuts down 6 and has fewer. How many trees are left?",
        "Multiply 5 by 8 and subtract 6.",
        "What is 5 * 8 - 6?",
    ],
    "2 * a + b": [
        "Double 5 and add 3.",
        "What is 2 * 5 + 3?",
        "Ben has 5 pens, doubles them and finds 3 more. How many?",
    ],
    "a / 2 - b": [
        "What is half of 20 minus 3?",
        "Anna has 20 nuts, gives away half and then loses 3. How many are left?",
    ],
    "a * x0 + b == c": ["Solve 3x + 5 = 20.", "Find y such that 4y + 1 = 9."],
}


def body(question: str) -> str:
    return normalise(question).partition("return ")[2]


@pytest.mark.parametrize(
    ("question", "expected"), [(question, code) for code, group in TABLE.items() for question in group]
)
def test_the_table(question: str, expected: str) -> None:
    assert body(question) == expected


def test_the_grammar_of_the_small_world_is_separated() -> None:
    """Every surface of a skill, whatever its numbers, names and things, has one code of its own."""
    draw = random.Random(0)
    codes = defaultdict(set)
    for skill, family in FAMILIES.items():
        for surface in range(len(family.surfaces)):
            codes[skill] |= {normalise(sample(draw, skill, surface).text) for _ in range(40)}
    assert {skill: len(found) for skill, found in codes.items()} == dict.fromkeys(FAMILIES, 1)
    assert len(set.union(*codes.values())) == len(FAMILIES)


@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32))
def test_numbers_and_names_do_not_matter(skill: str, seed: int) -> None:
    one, other = (sample(random.Random(seed + more), skill) for more in (0, 1))
    assert normalise(one.text) == normalise(other.text)


def test_unknown_operations_are_named_by_the_other_words() -> None:
    """Numbers and capitalised words do not count; the order of words does not either."""
    area = normalise("Find the area of a triangle with base 4 and height 6.")
    assert area == "def solver(a, b):\n    return area_base_height_triangle(a, b)"
    assert normalise("What is the area of a triangle with height 7 and base 9?") == area
    assert normalise("Find the perimeter of a triangle with base 4 and height 6.") != area
    assert body("Anna asks: who is the tallest?") == "asks_tallest()"
    assert body("") == body("???") == body("\ud800\0") == "unknown()"


@pytest.mark.parametrize(
    "text",
    [
        "1" + "+1" * 1900,
        "(" * 4000,
        "((((1+" * 600,
        "-" * 3000 + "1",
        " ".join(map(str, range(MOST_LEAVES + 50))),
        "twice " * 500 + "7",
        "7 " + "doubled " * 480,
        "x" * 100_000,
        "9" * 6000,
        "max(" * 900,
        "5 each and " * 300,
        "#0 #1 plus #99",
        "2^" * 1900 + "2",
        "0x10 + \uff10 + \u0661",
    ],
)
def test_hostile_texts_still_give_code(text: str) -> None:
    code = normalise(text)
    ast.parse(code)
    assert operation_words(code) is not None


WORDS = [
    "3",
    "4.5",
    "x",
    "+",
    "-",
    "*",
    "/",
    "(",
    ")",
    "=",
    "%",
    "of",
    "and",
    ".",
    "?",
    ",",
    "total",
    "each",
    "half",
]


@given(
    st.lists(
        st.sampled_from([*WORDS, "from", "max(", "remainder", "percent", "twice", "by", "!", "^"]),
        max_size=40,
    )
)
def test_any_sequence_of_its_words_gives_code(words: list[str]) -> None:
    code = normalise(" ".join(words))
    assert parse_code(code).code == code
    operation_words(code)


@given(st.text(max_size=200))
@example("aa\N{MICRO SIGN}")
def test_any_text_gives_code(text: str) -> None:
    code = normalise(text)
    assert parse_code(code).code == code
    operation_words(code)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is 3 + 4?", "total sum"),
        ("What is half of 20 minus 3?", "difference left half"),
        ("Compute (4 + 10) / 2.", "average mean"),
        ("What is 5 * 8 - 6?", "difference left product of groups"),
        ("Compute 7^2.", "square"),
        ("Solve 3x + 5 = 20.", "solve equation total sum product of groups"),
        ("Find the area of a triangle with base 4 and height 6.", "area base height triangle"),
    ],
)
def test_operations_in_words(question: str, words: str) -> None:
    assert operation_words(normalise(question)) == words


def test_it_says_that_it_stands_in() -> None:
    coder = RuleBasedCoder()
    assert "in place of a coder model" in coder.description
    (found,) = coder.rewrite(["What is 3 + 4?"])
    assert found.code is not None
    coder.close()


@pytest.mark.parametrize("word", [*keyword.kwlist, *keyword.softkwlist])
def test_a_lone_keyword_is_a_word_like_any(word: str) -> None:
    """Found in a run: "Anna 21 from 44." became ``from(a, b)``, which is no code."""
    code = normalise(f"{word} 21 zz 44.")
    assert parse_code(code).code is not None
    assert RuleBasedCoder().embedded(code).strip() == RuleBasedCoder().embedded(code)
