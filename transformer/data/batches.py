"""Windows of tokens with their targets, the order of windows in an epoch, and the rows of each process in a batch.

Dimensions: N tokens in the stream · B batch · T window length
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from transformer.data.tokenize import TokenStream
from transformer.errors import ConfigError, CorpusError

_CHUNK = 4096  # windows in which targets are counted at a time
IGNORE_INDEX = -100  # a target that is excluded from the loss: the default of F.cross_entropy


@dataclass(frozen=True)
class Batch:
    """inputs, targets: (B, T) token ids; targets that are excluded from the loss are IGNORE_INDEX.

    segment_ids: (B, T), the number of the document of each token.
    """

    inputs: Tensor
    targets: Tensor
    segment_ids: Tensor

    @property
    def n_targets(self) -> int:
        """Positions that count in the loss."""
        return int((self.targets != IGNORE_INDEX).sum())


class Windows:
    """Windows of `length` tokens of a stream; the target of each token is the next one.

    By default windows are packed: each starts where the one before it ends, so that every token but the first is a
    target once. The last window is padded, with IGNORE_INDEX as targets.

    Args:
        pad_id: input at padding.
        span: the part of the stream to use, as (first, last + 1) token; None: all of it.
        stride: tokens from the start of one window to the start of the next; None: `length`. If it is smaller, windows
            overlap.
        prompt_share: fraction of the windows, in [0, 1], whose first input is replaced by the end-of-text token. Few
            packed windows start with it, but every prompt does.
        seed: of the choice of these windows.

    Raises:
        ConfigError: if stride or prompt_share is out of range.
        CorpusError: if there are fewer than two tokens.
    """

    def __init__(
        self,
        stream: TokenStream,
        length: int,
        pad_id: int = 0,
        span: tuple[int, int] | None = None,
        stride: int | None = None,
        prompt_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.stream, self.length, self.pad_id = stream, length, pad_id
        self.stride = length if stride is None else stride
        self.prompt_share, self.seed = prompt_share, seed
        self.first, self.stop = span or (0, len(stream.tokens))
        if not 1 <= self.stride <= length:
            raise ConfigError(f"expected 1 <= stride <= {length}, the length of a window, not {self.stride}.")
        if not 0 <= prompt_share <= 1:
            raise ConfigError(f"prompt_share must be in [0, 1], not {prompt_share}.")
        if self.stop - self.first < 2:
            raise CorpusError(f"{self.stop - self.first} tokens are not enough to train on: at least 2 are needed.")

    def __len__(self) -> int:
        beyond_the_first = max(0, self.stop - self.first - 1 - self.length)
        return 1 - (-beyond_the_first // self.stride)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The windows with these numbers, as a batch."""
        rows = [self.window(int(index)) for index in indices]
        inputs, targets, segment_ids = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        return Batch(inputs, targets, segment_ids)

    def window(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The inputs, targets and segment_ids of one window, (T,) each."""
        start = self.first + index * self.stride
        stop = min(start + self.length, self.stop - 1)
        n = stop - start
        inputs = np.full(self.length, self.pad_id, np.int64)
        targets = np.full(self.length, IGNORE_INDEX, np.int64)
        inputs[:n] = self.stream.tokens[start:stop]
        targets[:n] = self.stream.tokens[start + 1 : stop + 1]
        if self.stream.loss_mask is not None:
            targets[:n][~self.stream.loss_mask[start + 1 : stop + 1]] = IGNORE_INDEX
        if self.prompt_share and np.random.default_rng([self.seed, index]).random() < self.prompt_share:
            inputs[0] = self.stream.tokens[0]  # every stream starts with the end-of-text token
        segment_ids = np.searchsorted(self.stream.starts, np.arange(start, start + self.length), side="right") - 1
        return inputs, targets, segment_ids


class BatchSource(Protocol):
    """An endless source of batches, whose position can be saved and restored."""

    def next(self) -> Batch:
        """The rows of this process in the next batch."""

    def set_progress(self, progress: float) -> None:
        """Set the progress of the run, in [0, 1], on which the next batches may depend."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch, as JSON."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after that position, also with another number of processes."""

    @property
    def steps_in_epoch(self) -> int | None:
        """Batches in an epoch; None: unknown."""

    def describe_last(self) -> str:
        """The position of the last batch and its rows of this process, for error messages."""


class EpochBatches:
    """All windows once in each epoch, reshuffled; the last batch of an epoch may be smaller.

    Batches do not depend on the number of processes: each has every `world_size`-th row, starting with `rank`. A
    process without a row gets one without targets.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._taken = 0  # batches, in all epochs
        self._ordered = -1  # the epoch of `_order`
        self._order = np.array([], np.int64)

    @property
    def steps_in_epoch(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def next(self) -> Batch:
        indices = self.indices(self._taken)
        self._taken += 1
        return rows_of_rank(self.windows, indices, self.rank, self.world_size)

    def set_progress(self, progress: float) -> None:
        """The order does not depend on it."""

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._taken = state_dict["batches"]

    def describe_last(self) -> str:
        if not self._taken:
            return "no batch yet"
        epoch, number = divmod(self._taken - 1, self.steps_in_epoch)
        rows = self.indices(self._taken - 1)[self.rank :: self.world_size]
        return f"epoch {epoch + 1}, batch {number + 1} of {self.steps_in_epoch}, windows {listed(rows)}"

    def indices(self, batch: int) -> np.ndarray:
        """The numbers of the windows in a batch, of all processes together.

        Args:
            batch: its number, from 0, counted over all epochs.
        """
        epoch, number = divmod(batch, self.steps_in_epoch)
        if epoch != self._ordered:
            self._ordered, self._order = epoch, epoch_order(len(self.windows), self.seed, epoch)
        return self._order[number * self.batch_size : (number + 1) * self.batch_size]


class ShortWindowsFirst:
    """Batches of short windows in the first part of a run, and of long ones afterwards.

    Short windows need less computation for attention, and a model learns short dependencies first ("Shortformer", Press
    et al., 2021).

    Args:
        share: fraction of the run, in [0, 1), with short windows.
    """

    def __init__(self, short: EpochBatches, long: EpochBatches, share: float) -> None:
        self.short, self.long, self.share = short, long, share
        self._current = short

    @property
    def steps_in_epoch(self) -> int:
        return self.long.steps_in_epoch

    def next(self) -> Batch:
        return self._current.next()

    def set_progress(self, progress: float) -> None:
        self._current = self.short if progress < self.share else self.long

    def state_dict(self) -> dict[str, Any]:
        return {"short": self.short.state_dict(), "long": self.long.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.short.load_state_dict(state_dict["short"])
        self.long.load_state_dict(state_dict["long"])

    def describe_last(self) -> str:
        return self._current.describe_last()


def epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the windows, which depends on the seed and the epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n_windows)


def validation_batches(windows: Windows, count: int, rows: int = 8, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """Batches of `count` windows with targets, or of all if there are fewer, evenly distributed over the text.

    If no window has targets, they are taken from all windows. Every process gets the same number of batches: its rows
    of batches of `rows` windows, as in EpochBatches.
    """
    usable = with_targets(windows)
    if not len(usable):
        usable = np.arange(len(windows))
    count = min(count, len(usable))
    picked = usable[np.linspace(0, len(usable) - 1, count).round().astype(np.int64)]
    return [rows_of_rank(windows, picked[start : start + rows], rank, world_size) for start in range(0, count, rows)]


def with_targets(windows: Windows) -> np.ndarray:
    """The numbers of the windows with at least one target."""
    loss_mask = windows.stream.loss_mask
    if loss_mask is None:
        return np.arange(len(windows))
    found = []
    for first in range(0, len(windows), _CHUNK):
        numbers = np.arange(first, min(first + _CHUNK, len(windows)))
        begins = windows.first + numbers * windows.stride
        stops = np.minimum(begins + windows.length, windows.stop - 1)
        counts = np.concatenate(([0], np.cumsum(loss_mask[begins[0] + 1 : stops[-1] + 1], dtype=np.int64)))
        found.append(numbers[counts[stops - begins[0]] > counts[begins - begins[0]]])
    return np.concatenate(found)


def rows_of_rank(windows: Windows, indices: np.ndarray, rank: int, world_size: int) -> Batch:
    """The rows of a process in the batch of these windows; if there are none, one row without targets."""
    if rank < len(indices):
        return windows.batch(indices[rank::world_size])
    batch = windows.batch(indices[:1])
    return Batch(batch.inputs, torch.full_like(batch.targets, IGNORE_INDEX), batch.segment_ids)


def listed(numbers: np.ndarray) -> str:
    """Numbers of windows as text; a process may have none."""
    return ", ".join(map(str, numbers.tolist())) or "none"
