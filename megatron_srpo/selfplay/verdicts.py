"""Are the two illusions of diversity there? Answers by a rule that is stated with them.

Local Diversity Illusion (arXiv 2602.13103): every batch looks diverse while iterations return to the same
skills. Surface Diversity Illusion: questions look different and are one skill.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CHANGE = 0.05  # of a share, from which on it counts as a rise
MOST = 0.5  # of questions, of pairs of one skill
FEWEST_PAIRS = 20
SATURATED = 1 - CHANGE

LOCAL_RULE = (
    "Present if, from the first iteration with a past to the last one, the share of questions that recur "
    f"rises by {CHANGE:g} or more while the batch's repetition penalty does not rise. Where more than "
    f"{SATURATED:.0%} recur from the start, the overlap with the past's clusters is looked at instead. "
    f"Without a rise, more than {MOST:.0%} at the end is steady recurrence, not its absence."
)
SURFACE_RULE = (
    f"Present if, in the last iteration with at least {FEWEST_PAIRS} pairs of one skill among its sampled "
    f"questions, more than {MOST:.0%} of these pairs are far from each other on the surface."
)

Curve = Mapping[int, float]
"""Iteration to value."""


@dataclass(frozen=True)
class Verdict:
    """An answer in words.

    Attributes:
        state: ``present``; ``absent``; ``steady`` where the past does not return more and more, but makes up
            most of an iteration all the time; ``open`` where the rule cannot decide.
    """

    illusion: str
    state: str
    text: str
    rule: str


def local_illusion(recurrence: Curve, overlap: Curve, penalty: Curve, repetition: str = "") -> Verdict:
    """Compare what recurs across iterations with what the batch penalty sees.

    Args:
        recurrence: share of an iteration's questions with a near-equal one in an earlier iteration.
        overlap: what an iteration and all earlier ones have in common as shares of clusters.
        penalty: mean repetition penalty of the iteration's training.
        repetition: how it is measured (the config's ``reward.repetition``), for the words.
    """
    both = sorted(set(recurrence) & set(overlap) & set(penalty))
    if len(both) < 2:
        text = f"Iterations with a recurrence and a batch repetition penalty: {len(both)} of the 2 needed."
        return Verdict("local", "open", text, LOCAL_RULE)
    first, last = both[0], both[-1]
    name, curve = "Recurrence", recurrence
    if recurrence[first] > SATURATED:
        name, curve = "Nearly every question recurs from the start. The overlap with the past", overlap
    measure = f" ({repetition})" if repetition else ""
    facts = (
        f"{name} goes from {curve[first]:.1%} (iteration {first}) to {curve[last]:.1%} (iteration {last}), "
        f"the batch's repetition penalty{measure} from {penalty[first]:.4f} to {penalty[last]:.4f}"
    )
    state, reading = _local_reading(curve[first], curve[last], penalty[last] - penalty[first])
    return Verdict("local", state, f"{facts}: {reading}.", LOCAL_RULE)


def _local_reading(start: float, end: float, more: float) -> tuple[str, str]:
    if start > SATURATED:
        return "open", "iterations are alike from the start, so that nothing can rise"
    if end - start < CHANGE and end > MOST:
        return "steady", "iterations do not return to the past more and more, but mostly ask what it asked"
    if end - start < CHANGE:
        return "absent", "iterations do not return to the past more and more"
    if more > 0:
        return "absent", "iterations return to the past more and more, and the batches show it too"
    return "present", "iterations return to the past more and more, and the batches do not show it"


def surface_illusion(far: Curve, alike: Mapping[int, int]) -> Verdict:
    """Say whether questions of one skill mostly look different.

    Args:
        far: share of pairs of one skill that are far on the surface, by iteration.
        alike: number of pairs of one skill.
    """
    enough = [iteration for iteration in sorted(far) if alike.get(iteration, 0) >= FEWEST_PAIRS]
    if not enough:
        return Verdict(
            "surface", "open", f"No iteration has {FEWEST_PAIRS} sampled pairs of one skill.", SURFACE_RULE
        )
    last = enough[-1]
    facts = (
        f"In iteration {last}, of {alike[last]:,} sampled pairs of one skill, {far[last]:.1%} look different"
    )
    state, reading = (
        ("present", "the surface hides most repetition")
        if far[last] > MOST
        else ("absent", "most repetition can be seen on the surface")
    )
    return Verdict("surface", state, f"{facts}: {reading}.", SURFACE_RULE)
