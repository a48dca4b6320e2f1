"""What the runs measured, as Markdown and as pictures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from experiments.story.drawing import Line, curves
from experiments.story.variants import TURNS, VARIANTS, Turn

Results = dict[str, dict[str, Any]]
_HEAD = """| run | held-out lines, nats per token (perplexity) | it reports | leaving it in costs | preflight |
|---|---|---|---|---|
"""


def table(results: Results) -> str:
    """A table for each turn whose runs are all there."""
    parts = []
    for turn in TURNS.values():
        if not {turn.control, *turn.others} <= results.keys():
            continue
        rows = "".join(_row(name, results, turn) for name in (turn.control, *turn.others))
        parts.append(f"**{turn.title}**\n\n{_HEAD}{rows}")
    return "\n".join(parts)


def _row(name: str, results: Results, turn: Turn) -> str:
    run = results[name]
    cost = run["honest"] - results[turn.control]["honest"]
    costs = "" if name == turn.control else f"{cost:+.3f} nats, perplexity × {math.exp(cost):.2f}"
    return (
        f"| {VARIANTS[name].what} | {_loss(run['honest'])} | {_loss(run['reported']['all']['nats'])} | {costs} | "
        f"{verdict(run['preflight'], name in turn.mistakes)} |\n"
    )


def _loss(nats: float) -> str:
    return f"{nats:.3f} ({math.exp(nats):,.1f})"


def verdict(report: dict[str, Any], mistake: bool) -> str:
    """The checks that did not pass, by name; of a mistake also that there was none."""
    found = {kind: [c["name"] for c in report["checks"] if c["verdict"] == kind] for kind in ("fail", "warn")}
    words = [f"**{kind}s**: {', '.join(names)}" for kind, names in found.items() if names]
    return "; ".join(words) or ("**not caught**" if mistake else "passes")


def picture(name: str, turn: Turn, results: Results) -> str:
    """Loss on the held-out lines by step; dashed, what a run with a mistake reported of itself while it trained."""
    lines = []
    for colour, variant in enumerate((turn.control, *turn.others)):
        run = results[variant]
        lines.append(Line(VARIANTS[variant].what, [tuple(point) for point in run["curve"]], colour))
        if variant in turn.mistakes:
            part = run["steps"] / len(run["training_curve"])
            points = [((i + 0.5) * part, loss) for i, loss in enumerate(run["training_curve"])]
            lines.append(Line("what it reports", points, colour, dashed=True))
    return curves(name, turn.title, lines)


def fill_in(page: Path, name: str, text: str) -> None:
    """Put the text between <!-- name --> and <!-- /name --> of the page."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    page.write_text(
        pattern.sub(lambda match: f"{match[1]}{text}{match[2]}", page.read_text(encoding="utf-8")), encoding="utf-8"
    )
