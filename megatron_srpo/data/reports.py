"""What was kept and what was refused when prompts were loaded, so that nothing disappears in silence."""

from dataclasses import dataclass, field

from megatron_srpo.errors import DataError

_EXAMPLES_KEPT = 10


@dataclass
class LoadReport:
    """Counts of one source.

    Attributes:
        source: name of the source.
        kept: prompts that can be used.
        bad: rows that could not be used.
        duplicates: generated questions left out because the same text had come before.
        overlap: training prompts left out because an evaluation set asks the same.
        missing: questions asked for that the source could not supply.
        examples: the first bad rows as "file:line: reason".
    """

    source: str
    kept: int = 0
    bad: int = 0
    duplicates: int = 0
    overlap: int = 0
    missing: int = 0
    examples: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return one line for the console; zero counts are left out."""
        counts = {
            "bad rows": self.bad,
            "repeated questions": self.duplicates,
            "also in evaluation": self.overlap,
            "fewer than asked for": self.missing,
        }
        notes = [f"{count} {name}" for name, count in counts.items() if count]
        line = f"{self.source}: {self.kept} prompts" + (f" ({', '.join(notes)})" if notes else "")
        return line + (f"; first bad row: {self.examples[0]}" if self.examples else "")


class BadRows:
    """Counts bad rows into a report, or refuses the first one, by ``policy`` ("skip" or "refuse")."""

    def __init__(self, policy: str, report: LoadReport) -> None:
        self.policy = policy
        self.report = report

    def add(self, place: str, reason: str) -> None:
        """Record one bad row. Raises :class:`DataError` when the policy is "refuse"."""
        if self.policy == "refuse":
            raise DataError(
                f"{place}: {reason}; mend the row, or set data.on_bad_row=skip to leave such rows out"
            )
        self.report.bad += 1
        if len(self.report.examples) < _EXAMPLES_KEPT:
            self.report.examples.append(f"{place}: {reason}")
