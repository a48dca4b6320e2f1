"""The progress of a training run in the terminal."""

from __future__ import annotations

import logging
import math
import sys
import time

from tqdm import tqdm

from transformer.evaluation.perplexity import perplexity

logger = logging.getLogger("transformer")
_SECONDS_BETWEEN_LINES = 20


class Display:
    """A progress bar in a terminal; otherwise a log line every 20 seconds."""

    def __init__(self) -> None:
        self._bar = tqdm(total=100, disable=not sys.stderr.isatty(), bar_format="{percentage:3.0f}% |{bar}| {desc}")
        self._last_line = 0.0

    def step(
        self,
        step: int,
        done: float,
        loss: float,
        tokens_per_second: float,
        utilisation: float,
        seconds: float,
        cost: float | None,
    ) -> None:
        """Show the progress after a step.

        Args:
            done: fraction of the budget that is spent. loss: nats per token. utilisation: MFU, in [0, 1]; see `flops`.
            seconds: duration of the run. cost: of the run so far; None: unknown.
        """
        left = seconds * (1 - done) / done if done > 0 else math.nan
        text = (
            f"step {step:,} · loss {loss:.3f} · perplexity per token {perplexity(loss):,.1f} · "
            f"{tokens_per_second:,.0f} tokens/s · {utilisation:.0%} MFU · {clock(left)} left"
        )
        if cost is not None:
            text += f" · cost {cost:.2f}"
        if not self._bar.disable:
            self._bar.n = round(100 * done)
            self._bar.set_description_str(text)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("%3.0f%% · %s", 100 * done, text)

    def say(self, text: str) -> None:
        """Print a line above the progress bar, or to the log."""
        if self._bar.disable:
            logger.info("%s", text)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, 7:05, or with hours, 1:07:05."""
    if not math.isfinite(seconds):
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def short(value: float, digits: int = 4) -> str:
    """A short form of a number: 19.23M for 19,234,816; numbers below ten thousand are written out."""
    value = float(f"{value:.{digits}g}")
    if abs(value) >= 1e15:
        return f"{value:g}"
    for size, unit, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= size:
            return f"{value / unit:.{digits}g}{letter}"
    return f"{value:,.0f}" if value.is_integer() else f"{value:g}"
