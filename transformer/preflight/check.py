"""What a check found, and the report of all of them: a table for a person, JSON for a program."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail"]

_WIDTH = 120  # of the table, in characters
_NAME, _VERDICT = 24, 4


@dataclass(frozen=True)
class Check:
    """What was measured, beside what was expected.

    cause_and_cure: one sentence if the verdict is not "pass", else empty. name: see `CHECK_NAMES`.
    """

    measured: str
    expected: str
    verdict: Verdict = "pass"
    cause_and_cure: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        assert bool(self.cause_and_cure) == (self.verdict != "pass"), self.measured


@dataclass(frozen=True)
class Expected:
    """What a check expects, with which it makes its results."""

    text: str

    def passed(self, measured: str) -> Check:
        return Check(measured, self.text)

    def warned(self, measured: str, cause_and_cure: str) -> Check:
        return Check(measured, self.text, "warn", cause_and_cure)

    def failed(self, measured: str, cause_and_cure: str, certain: bool = True) -> Check:
        """certain: False makes it a warning."""
        return Check(measured, self.text, "fail" if certain else "warn", cause_and_cure)


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class ShownRow:
    """A row of a batch for a person to look at, as text, each input beside its target.

    where: which row this is. pairs: (input, target) of its first and last positions; a target of None is not learned,
    and a pair of None stands where positions are left out.
    """

    where: str
    pairs: tuple[tuple[str, str | None] | None, ...]

    def lines(self) -> list[str]:
        """The row in two lines, targets below inputs."""
        inputs, targets = ["input "], ["target"]
        for pair in self.pairs:
            left, right = ("...", "...") if pair is None else (repr(pair[0]), "-" if pair[1] is None else repr(pair[1]))
            width = max(len(left), len(right))
            inputs.append(left.ljust(width))
            targets.append(right.ljust(width))
        return [self.where, *("  " + "  ".join(line).rstrip() for line in (inputs, targets))]


@dataclass(frozen=True)
class Report:
    """All findings. seconds: how long the checks took."""

    checks: tuple[Check, ...]
    shown: tuple[ShownRow, ...] = ()
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stop a run."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    @property
    def warned(self) -> tuple[Check, ...]:
        """The checks that a person should look at."""
        return tuple(check for check in self.checks if check.verdict == "warn")

    def sentences(self) -> str:
        """Cause and cure of everything that failed."""
        return " ".join(f"{check.name}: {check.cause_and_cure}" for check in self.failed)

    def table(self) -> str:
        """Inputs beside targets, and a line for each check."""
        width = (_WIDTH - _NAME - _VERDICT - 6) // 2
        lines = [line for row in self.shown for line in row.lines()]
        lines += ["", f"{'check':{_NAME}}  {'':{_VERDICT}}  {'measured':{width}}  expected"]
        for check in self.checks:
            wrapped = (textwrap.wrap(text, width) for text in (check.measured, check.expected))
            for name, verdict, measured, expected in zip_longest([check.name], [check.verdict], *wrapped, fillvalue=""):
                lines.append(f"{name:{_NAME}}  {verdict:{_VERDICT}}  {measured:{width}}  {expected}".rstrip())
            lines += textwrap.wrap(check.cause_and_cure, _WIDTH, initial_indent="    → ", subsequent_indent="      ")
        counts = (len(self.checks) - len(self.warned) - len(self.failed), len(self.warned), len(self.failed))
        lines += ["", "{} passed, {} warned, {} failed, in {:.1f} s".format(*counts, self.seconds)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON can hold it; verdict is the worst of any check."""
        return {
            "verdict": "fail" if self.failed else "warn" if self.warned else "pass",
            "seconds": round(self.seconds, 3),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "shown": [dataclasses.asdict(row) for row in self.shown],
        }
