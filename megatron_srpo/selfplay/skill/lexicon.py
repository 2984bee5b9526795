"""Words of the rule-based normaliser: which operation they stand for, and when it acts.

Earlier lines win where two match at one place. ``step``: joins the number beside it to what stands before.
``whole``: says what is asked of all numbers. ``alone``: changes one number.
"""

import re
from typing import NamedTuple


class Cue(NamedTuple):
    """Words that stand for an operation.

    Attributes:
        kind: ``step``, ``whole`` or ``alone``.
        operation: its name; operators of code by their usual names.
        words: a regular expression over lower-case text.
    """

    kind: str
    operation: str
    words: str


#: Goes into the name of the measurement: raise it whenever the same question may give other code.
VERSION = 1

CUES = (
    # Asked of all numbers. The order is also that in which they win where a question has several.
    Cue("whole", "gcd", r"greatest common (?:divisor|factor)|highest common factor|gcd|hcf"),
    Cue("whole", "gcd", r"(?:largest|greatest) (?:possible )?number (?:that divides|of)"),
    Cue("whole", "lcm", r"(?:least|lowest|smallest) common (?:multiple|denominator)|lcm"),
    Cue("whole", "lcm", r"smallest number (?:that is )?divisible by"),
    Cue("whole", "mod", r"remainder|(?:(?:is|are|has|have) )?left ?over"),
    Cue("whole", "median", r"median"),
    Cue("whole", "mean", r"average|mean"),
    Cue("whole", "digit_sum", r"sum of (?:the|its|all) digits"),
    Cue("whole", "count_letters", r"how many (?:times does the )?letters?"),
    Cue("step", "add", r"more than|greater than|larger than"),
    Cue("step", "fewer", r"(?:less|fewer|smaller) than"),
    Cue(
        "whole",
        "max",
        r"larger|largest|greater|greatest|maximum|biggest|bigger|(?:one|who) with (?:the )?more",
    ),
    Cue("whole", "min", r"smaller|smallest|minimum|lesser|(?:one|who) with (?:the )?fewer"),
    Cue("whole", "sub", r"difference|how (?:many|much) (?:more|fewer|less)"),
    Cue("whole", "mul", r"product"),
    Cue("whole", "div", r"quotient|ratio|(?:in|does) each|how (?:many|much) \w+ per"),
    Cue("whole", "add", r"sum|total|in all|altogether|all together|combined"),
    Cue("whole", "sub", r"(?:is|are|has|have) left|remain(?:s|ing)?|how (?:many|much)(?: \w+)? left"),
    # Change one number.
    Cue("alone", "square_root", r"square root(?: of)?"),
    Cue("alone", "square", r"square(?:d| of)"),
    Cue("alone", "cube", r"cube(?:d| of)"),
    Cue("alone", "factorial", r"factorial(?: of)?"),
    Cue("alone", "double", r"doubled?|doubles|twice(?: as (?:many|much))?"),
    Cue("alone", "triple", r"tripled?|triples|thrice|three times as (?:many|much)"),
    Cue("alone", "half", r"half|halved?|halves"),
    # Join a number to what stands before.
    Cue("step", "percent", r"(?:percent|per cent|%) of"),
    Cue("step", "more_percent", r"(?:increased|raised|rises?|grows?|up) by(?= #\d+ ?(?:percent|per cent|%))"),
    Cue(
        "step",
        "less_percent",
        r"(?:decreased|reduced|falls?|drops?|down) by(?= #\d+ ?(?:percent|per cent|%))",
    ),
    Cue("step", "power", r"(?:raised )?to the(?: power(?: of)?)?(?= #)"),
    Cue(
        "step",
        "div",
        r"into (?:\w+ )?\w+s of|into|divid(?:e|es|ed|ing)(?: \w+)? by|divides?|divided|over(?= #)",
    ),
    Cue("step", "div", r"shar(?:e|es|ed|ing)|splits?|equally|evenly|among"),
    Cue("step", "mod", r"mod|modulo"),
    Cue("step", "mul", r"multipl(?:y|ies|ied|ying)(?: by)?|times(?: as (?:many|much))?|\w+s of(?= #)"),
    Cue("step", "mul", r"each|every|apiece|per"),
    Cue("step", "from", r"from"),
    Cue(
        "step", "sub", r"minus|subtract(?:s|ed|ing)?|takes?|took|taken|removes?|removed|uses?|used|fewer|less"
    ),
    Cue(
        "step",
        "sub",
        r"g[ai]ves?(?: away)?|los(?:e|es|t)|spends?|spent|eats?|ate|eaten|sells?|sold|breaks?|broken?",
    ),
    Cue("step", "sub", r"leaves?(?= #)|decreased by|reduced by|throws?|threw|donates?|donated"),
    Cue(
        "step",
        "add",
        r"plus|add(?:s|ed|ing)?(?: to)?|more|another|additional|extra|increased by|joins?|joined",
    ),
    Cue(
        "step",
        "add",
        r"buys?|bought|finds|found|receives?|received|gains?|gained|earns?|earned|wins?|won|gets?|got",
    ),
    Cue("step", "add", r"picks?|picked|collects?|collected|makes?|made|saves?|saved|borrows?|borrowed"),
)

CUE = re.compile("|".join(rf"(?P<c{place}>(?<!\w)(?:{cue.words})(?!\w))" for place, cue in enumerate(CUES)))

_FROM_TWO = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
"""
NUMBER_WORDS = {word: value for value, word in enumerate(_FROM_TWO.split(), start=2)} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "hundred": 100,
    "thousand": 1000,
}

_EMPTY = """
a about all also an and are as at be been between by calculate can compute determine do does
evaluate find following for from give given has have he her his how i if in is it its let many much
must not number of on one or out she show solve such suppose than that the their them then there
these they this to two value was we were what when where which who whose will with you your
"""
#: Words that say nothing of an operation where no cue was found.
EMPTY_WORDS = frozenset(_EMPTY.split())
