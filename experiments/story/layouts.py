"""How text becomes inputs and targets: as it should be, and with each of the original's mistakes planted.

Every layout is made here, outside of the product, which has no option for any of them.

Dimensions: N rows · T window length
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transformer.data.batches import IGNORE_INDEX, Batch, BatchSource, epoch_order, listed


@dataclass(frozen=True)
class Examples:
    """inputs, targets: (N, T) token ids; targets IGNORE_INDEX where nothing is learned."""

    inputs: np.ndarray
    targets: np.ndarray

    def batch(self, rows: np.ndarray | slice) -> Batch:
        inputs, targets = (torch.from_numpy(part[rows].astype(np.int64)) for part in (self.inputs, self.targets))
        return Batch(inputs, targets, torch.zeros_like(inputs))


def line_examples(
    lines: Sequence[Sequence[int]], length: int, pad: int, marker: int | None = None, count_padding: bool = False
) -> Examples:
    """The original's examples: each line for itself, in blocks of T tokens, filled up with padding on the left.

    At least one padding token stands before a block, so that its first token is a target too. Padding, begin and end
    of text are one id, as in the original.

    Args:
        lines: their token ids.
        marker: planted: this token ends every line.
        count_padding: planted: padding is a target like any other token.
    """
    marked = [[*line, marker] if marker is not None else line for line in lines]
    blocks = [line[start : start + length] for line in marked for start in range(0, len(line), length)]
    rows = np.full((len(blocks), length + 1), pad, np.int32)
    for row, block in zip(rows, blocks, strict=True):
        row[length + 1 - len(block) :] = block
    inputs, targets = rows[:, :-1], rows[:, 1:].copy()
    if not count_padding:
        targets[targets == pad] = IGNORE_INDEX
    return Examples(inputs, targets)


def held_out_lines(lines: Sequence[Sequence[int]], length: int, begin: int, left: bool) -> Examples:
    """What every run is measured on: each line's first T tokens; all but the first are targets, whoever reads them.

    Args:
        begin: the token before a line, and its padding.
        left: the line stands at the end of the row, as those read it that learned so; otherwise at its beginning.
    """
    inputs = np.full((len(lines), length), begin, np.int32)
    targets = np.full((len(lines), length), IGNORE_INDEX, np.int32)
    for row, line in enumerate(lines):
        tokens = line[:length]
        first = length - len(tokens) if left else 0
        inputs[row, first + 1 : first + len(tokens)] = tokens[:-1]
        targets[row, first + 1 : first + len(tokens)] = tokens[1:]
    return Examples(inputs, targets)


class ExampleBatches:
    """All examples once in each epoch, in a new order each time: a `BatchSource` for one process."""

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._taken = 0

    @property
    def steps_in_epoch(self) -> int:
        return -(-len(self.examples.inputs) // self.batch_size)

    def next(self) -> Batch:
        rows = self._rows(self._taken)
        self._taken += 1
        return self.examples.batch(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._taken = state_dict["batches"]

    def describe_last(self) -> str:
        return f"examples {listed(self._rows(self._taken - 1))}" if self._taken else "no batch yet"

    def _rows(self, taken: int) -> np.ndarray:
        epoch, number = divmod(taken, self.steps_in_epoch)
        order = epoch_order(len(self.examples.inputs), self.seed, epoch)
        return order[number * self.batch_size : (number + 1) * self.batch_size]


class ChangedBatches:
    """Another source's batches, each changed on its way to the model: where a mistake in a collator would be."""

    def __init__(self, source: BatchSource, change: Callable[[Batch], Batch]) -> None:
        self.source, self.change = source, change

    @property
    def steps_in_epoch(self) -> int | None:
        return self.source.steps_in_epoch

    def next(self) -> Batch:
        return self.change(self.source.next())

    def set_progress(self, progress: float) -> None:
        self.source.set_progress(progress)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.source.load_state_dict(state_dict)

    def describe_last(self) -> str:
        return self.source.describe_last()


def overwrite_last_target(batch: Batch, end: int) -> Batch:
    """Planted: inputs shifted within the window, where the last has no successor; end of text is put in its place."""
    targets = batch.targets.clone()
    targets[:, -1] = end
    return Batch(batch.inputs, targets, batch.segment_ids)
