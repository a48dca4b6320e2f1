"""Documents packed into windows of tokens, each with its targets; the order of an epoch.

Dimensions: N tokens in the stream · B batch · T window length
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transformer.errors import CorpusError
from transformer.text.corpus import Document
from transformer.text.tokenizer import Tokenizer

IGNORE = -100  # the target that no loss counts: PyTorch's own default
_DOCUMENTS_AT_ONCE = 256


@dataclass(frozen=True)
class TokenStream:
    """All documents in one row, each begun by the end-of-text token and the last one ended by it.

    tokens: (N,) token ids. learned: (N,) bool, False at prompts. starts: where each document's end-of-text stands.
    n_bytes: of the text that is learned, as UTF-8.
    """

    tokens: np.ndarray
    learned: np.ndarray
    starts: np.ndarray
    n_bytes: int


@dataclass(frozen=True)
class Batch:
    """inputs, targets: (B, T) token ids, targets IGNORE where nothing is learned. document: (B, T), its number."""

    inputs: Tensor
    targets: Tensor
    document: Tensor


def tokenize(documents: Iterable[Document], tokenizer: Tokenizer) -> TokenStream:
    """Encode the documents, in parallel, and pack them.

    Raises:
        CorpusError: if there is no document.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    end = np.array([tokenizer.end_of_text_id], dtype)
    tokens: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    starts: list[int] = []
    length = n_bytes = 0
    for chunk in _chunks(documents):
        prompts = tokenizer.encode_documents([document.prompt for document in chunk])
        texts = tokenizer.encode_documents([document.text for document in chunk])
        for document, prompt, text in zip(chunk, prompts, texts, strict=True):
            starts.append(length)
            tokens += [end, np.array(prompt, dtype), np.array(text, dtype)]
            learned += [np.ones(1, bool), np.zeros(len(prompt), bool), np.ones(len(text), bool)]
            length += 1 + len(prompt) + len(text)
            n_bytes += len(document.text.encode())
    if not starts:
        raise CorpusError("there is no document to train on.")
    return TokenStream(
        np.concatenate([*tokens, end]),
        np.concatenate([*learned, np.ones(1, bool)]),
        np.array(starts),
        n_bytes,
    )


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while chunk := list(itertools.islice(iterator, _DOCUMENTS_AT_ONCE)):
        yield chunk


class Windows:
    """The stream cut into windows of `length` inputs; each input's target is the token after it in the stream.

    Every token but the first is a target exactly once. The last window is filled up with padding that is no target.

    Args:
        span: the part of the stream to cut, as (first, last + 1) token; None: all of it.
    """

    def __init__(self, stream: TokenStream, length: int, pad_id: int = 0, span: tuple[int, int] | None = None) -> None:
        self.stream, self.length, self.pad_id = stream, length, pad_id
        self.first, self.stop = span or (0, len(stream.tokens))
        if self.stop - self.first < 2:
            raise CorpusError(f"{self.stop - self.first} tokens are not enough to train on: at least 2 are needed.")

    def __len__(self) -> int:
        return -(-(self.stop - self.first - 1) // self.length)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The windows of these numbers, B of them."""
        rows = [self._window(int(index)) for index in indices]
        inputs, targets, document = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        return Batch(inputs, targets, document)

    def _window(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = self.first + index * self.length
        stop = min(start + self.length, self.stop - 1)
        n = stop - start
        inputs = np.full(self.length, self.pad_id, np.int64)
        targets = np.full(self.length, IGNORE, np.int64)
        inputs[:n] = self.stream.tokens[start:stop]
        following = self.stream.tokens[start + 1 : stop + 1].astype(np.int64)
        targets[:n] = np.where(self.stream.learned[start + 1 : stop + 1], following, IGNORE)
        document = np.searchsorted(self.stream.starts, np.arange(start, start + self.length), side="right") - 1
        return inputs, targets, document


def epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation, a new one each time, the same for the same seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n_windows)


def batches(windows: Windows, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """One epoch: every window once. The last batch may be smaller."""
    order = epoch_order(len(windows), seed, epoch)
    for start in range(0, len(order), batch_size):
        yield windows.batch(order[start : start + batch_size])
