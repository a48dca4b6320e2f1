"""Targets in the windows of a text with prompts, which are excluded from the loss.

Dimensions: N tokens in the stream · W windows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transformer.data.batches import Windows, with_targets


@dataclass(frozen=True)
class Coverage:
    """Counts of windows, and of completions in them.

    windows: all of them. empty: those without targets. completions: parts of the text that follow a prompt and are
    targets. cut: those whose start is in no window together with the full prompt.
    """

    windows: int
    empty: int
    completions: int
    cut: int

    def warnings(self, length: int) -> list[str]:
        """Warnings for the user. length: tokens in a window."""
        found = []
        if self.empty:
            found.append(
                f"{self.empty:,} of {self.windows:,} windows ({_percent(self.empty, self.windows)}) have nothing to "
                "learn: they contain only prompts. A step of such windows alone changes nothing."
            )
        if self.cut:
            found.append(
                f"{self.cut:,} of {self.completions:,} completions ({_percent(self.cut, self.completions)}) are not in "
                f"one window of {length} tokens with their full prompt: use a larger --context-length or shorter "
                "prompts."
            )
        return found


def coverage(windows: Windows) -> Coverage:
    """Count the windows without targets and the completions without their prompt."""
    loss_mask = windows.stream.loss_mask
    if loss_mask is None:  # all tokens are targets
        return Coverage(len(windows), 0, 0, 0)
    starts = np.asarray(windows.stream.starts)
    starts = starts[(starts >= windows.first) & (starts < windows.stop)]
    mask = np.asarray(loss_mask[windows.first : windows.stop])
    begins = 1 + windows.first + np.flatnonzero(~mask[:-1] & mask[1:])  # the first target after a prompt
    document = np.searchsorted(starts, begins, side="right") - 1
    begins, document = begins[document >= 0], document[document >= 0]
    # The last window that starts at or before the first token of the document.
    window = windows.first + (starts[document] - windows.first) // windows.stride * windows.stride
    cut = int((begins > window + windows.length).sum()) if len(begins) else 0
    return Coverage(len(windows), len(windows) - len(with_targets(windows)), len(begins), cut)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if part * 100 >= whole else "less than 1%"
