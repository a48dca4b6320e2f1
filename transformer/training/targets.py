"""How much there is to learn in the windows of a text whose rows have prompts, which are only read.

Dimensions: N tokens in the stream · W windows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transformer.data.batches import Windows, with_targets


@dataclass(frozen=True)
class Coverage:
    """What windows hold of a text with prompts.

    windows: all of them; empty: those without a target. completions: learned parts that follow a prompt; cut: those of
    which no window holds the beginning together with the whole prompt.
    """

    windows: int
    empty: int
    completions: int
    cut: int

    def sentences(self, length: int) -> list[str]:
        """What a person should know of it. length: of a window, in tokens."""
        said = []
        if self.empty:
            said.append(
                f"{self.empty:,} of {self.windows:,} windows ({_percent(self.empty, self.windows)}) have nothing to "
                "learn: they hold prompts alone. A step of such windows alone changes nothing."
            )
        if self.cut:
            said.append(
                f"{self.cut:,} of {self.completions:,} completions ({_percent(self.cut, self.completions)}) begin in a "
                f"window of {length} tokens without the whole of their prompt: a longer --context-length, or shorter "
                "prompts, keep them together."
            )
        return said


def coverage(windows: Windows) -> Coverage:
    """Count what the windows hold; everything, without a count, where all of the text is learned."""
    learned = windows.stream.loss_mask
    if learned is None:
        return Coverage(len(windows), 0, 0, 0)
    starts = np.asarray(windows.stream.starts)
    starts = starts[(starts >= windows.first) & (starts < windows.stop)]
    # The first token of each learned part that has something before it which is not learned.
    begins = (
        1
        + windows.first
        + np.flatnonzero(
            ~np.asarray(learned[windows.first : windows.stop - 1])
            & np.asarray(learned[windows.first + 1 : windows.stop])
        )
    )
    document = np.searchsorted(starts, begins, side="right") - 1
    begins, document = begins[document >= 0], document[document >= 0]
    # The last window that begins at the document's first token or before.
    window = windows.first + (starts[document] - windows.first) // windows.stride * windows.stride
    cut = int((begins > window + windows.length).sum()) if len(begins) else 0
    return Coverage(len(windows), len(windows) - len(with_targets(windows)), len(begins), cut)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if part * 100 >= whole else "less than 1%"
