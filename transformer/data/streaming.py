"""Batches of a streamed corpus, which is not stored on disk and is shuffled in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from transformer.data.batches import Batch, Windows, listed, rows_of_rank
from transformer.data.corpus import Corpus
from transformer.data.text_source import TextSource
from transformer.data.tokenize import tokenize
from transformer.data.tokenizer import Tokenizer

_CHARACTERS_IN_TOKEN = 4  # of English text, about


class StreamBatches:
    """The interface of EpochBatches for a stream, of which only one block is in memory.

    A block is about `block_windows` windows of consecutive rows, reshuffled in each epoch. Its batches have equal
    sizes, up to one window, of at most `batch_size`. Every process reads the full corpus.

    Raises:
        CorpusError: as `Corpus`, also in `next`.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: Tokenizer,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        block_windows: int = 2048,
        text_column: str | None = None,
    ) -> None:
        self._source, self._text_column = source, text_column
        self._tokenizer, self._length, self._batch_size, self._seed = tokenizer, length, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._characters = max(block_windows, batch_size) * length * _CHARACTERS_IN_TOKEN
        self._corpus = Corpus(self._source, self._text_column)
        self._epoch, self._block, self._taken = 0, 0, 0  # taken: batches of this block
        self._load_block()

    @property
    def steps_in_epoch(self) -> None:
        return None

    def next(self) -> Batch:
        if self._taken == len(self._batches):
            self._block += 1
            self._taken = 0
            self._load_block()
        self._taken += 1
        return rows_of_rank(self._windows, self._batches[self._taken - 1], self._rank, self._world_size)

    def set_progress(self, progress: float) -> None:
        """The order does not depend on it."""

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "block": self._block, "taken": self._taken, "begins": self._begins}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch, self._block, self._taken = state_dict["epoch"], state_dict["block"], state_dict["taken"]
        self._corpus = Corpus(self._source, self._text_column)
        self._corpus.go_to(state_dict["begins"])
        self._load_block()

    def describe_last(self) -> str:
        if not self._taken:
            return "no batch yet"
        rows = self._batches[self._taken - 1][self._rank :: self._world_size]
        return (
            f"epoch {self._epoch + 1}, block {self._block + 1}, batch {self._taken} of {len(self._batches)} in it, "
            f"windows {listed(rows)}"
        )

    def _load_block(self) -> None:
        """Read the next rows; after the end of the corpus, the first ones."""
        self._begins = self._corpus.position()
        documents = list(self._corpus.read(self._characters))
        if not documents:
            self._epoch, self._block = self._epoch + 1, 0
            self._corpus = Corpus(self._source, self._text_column)
            self._begins = self._corpus.position()
            documents = list(self._corpus.read(self._characters))
        self._windows = Windows(tokenize(documents, self._tokenizer), self._length, self._tokenizer.padding_id)
        order = np.random.default_rng([self._seed, self._epoch, self._block]).permutation(len(self._windows))
        self._batches = np.array_split(order, -(-len(order) // self._batch_size))
