"""What a check found, and the report of all of them: a table for a person, JSON for a program."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail"]

_WIDTH = 120  # of the table, in characters
_NAME, _VERDICT = 24, 4


@dataclass(frozen=True)
class Check:
    """One thing that was measured, beside what was expected.

    cause_and_cure: one sentence, of what is not a pass; empty where it is one.
    """

    name: str
    measured: str
    expected: str
    verdict: Verdict = "pass"
    cause_and_cure: str = ""

    def __post_init__(self) -> None:
        assert bool(self.cause_and_cure) == (self.verdict != "pass"), self.name


@dataclass(frozen=True)
class ShownRow:
    """A row of a batch for a person to look at: pieces of text, each input beside its target.

    where: which row this is. pairs: (input, target) of its first and its last positions; a target of None is not
    learned, and a pair of None stands where positions are left out.
    """

    where: str
    pairs: tuple[tuple[str, str | None] | None, ...]

    def lines(self) -> list[str]:
        """The row in two lines, targets beneath inputs."""
        inputs, targets = ["input "], ["target"]
        for pair in self.pairs:
            left, right = ("...", "...") if pair is None else (repr(pair[0]), "-" if pair[1] is None else repr(pair[1]))
            width = max(len(left), len(right))
            inputs.append(left.ljust(width))
            targets.append(right.ljust(width))
        return [self.where, *("  " + "  ".join(line).rstrip() for line in (inputs, targets))]


@dataclass(frozen=True)
class Report:
    """All that was checked. seconds: what it took."""

    checks: tuple[Check, ...]
    shown: tuple[ShownRow, ...] = ()
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[Check, ...]:
        """What has to be mended before a run is worth its money."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    @property
    def warned(self) -> tuple[Check, ...]:
        """What a person should look at."""
        return tuple(check for check in self.checks if check.verdict == "warn")

    def named(self, name: str) -> Check:
        """The check of this name.

        Raises:
            KeyError: if there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def sentences(self) -> str:
        """Cause and cure of all that failed."""
        return " ".join(f"{check.name}: {check.cause_and_cure}" for check in self.failed)

    def table(self) -> str:
        """Inputs beside targets, and a line for each check."""
        column = (_WIDTH - _NAME - _VERDICT - 6) // 2
        lines = [line for row in self.shown for line in row.lines()]
        lines += ["", f"{'check':{_NAME}}  {'':{_VERDICT}}  {'measured':{column}}  expected"]
        for check in self.checks:
            measured = textwrap.wrap(check.measured, column) or [""]
            expected = textwrap.wrap(check.expected, column) or [""]
            for i in range(max(len(measured), len(expected))):
                left = f"{check.name:{_NAME}}  {check.verdict:{_VERDICT}}" if i == 0 else " " * (_NAME + 2 + _VERDICT)
                cells = (column_of[i] if i < len(column_of) else "" for column_of in (measured, expected))
                lines.append(f"{left}  {next(cells):{column}}  {next(cells)}".rstrip())
            indent = " " * 4
            lines += textwrap.wrap(
                check.cause_and_cure, _WIDTH, initial_indent=f"{indent}→ ", subsequent_indent="      "
            )
        counts = (len(self.checks) - len(self.warned) - len(self.failed), len(self.warned), len(self.failed))
        lines += ["", "{} passed, {} warned, {} failed, in {:.1f} s".format(*counts, self.seconds)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it; verdict is the worst of any check."""
        verdict = "fail" if self.failed else "warn" if self.warned else "pass"
        return {
            "verdict": verdict,
            "seconds": round(self.seconds, 3),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "shown": [dataclasses.asdict(row) for row in self.shown],
        }
