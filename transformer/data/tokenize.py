"""Tokenization of documents into one sequence of token ids.

Dimensions: N tokens in the stream · D documents
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from transformer.data.document import Document
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CorpusError

_CHARACTERS_AT_ONCE = 2**21  # encoded in one parallel call, whose result needs about 100 MB


@dataclass(frozen=True)
class TokenStream:
    """All documents in one sequence, with the end-of-text token before each document and after the last one.

    tokens: (N,) token ids. loss_mask: (N,) bool, whether each token is a target of the loss; None: all are.
    starts: (D,) positions of the end-of-text token before each document. n_bytes: UTF-8 bytes of the targets' text.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray | None
    starts: np.ndarray
    n_bytes: int


def tokenize(documents: Iterable[Document], tokenizer: Tokenizer) -> TokenStream:
    """Tokenize documents in memory.

    Raises:
        CorpusError: if there is no document.
    """
    parts = list(token_parts(documents, tokenizer))
    loss_mask = np.concatenate([part.loss_mask for part in parts if part.loss_mask is not None])
    return TokenStream(
        np.concatenate([part.tokens for part in parts]),
        None if loss_mask.all() else loss_mask,
        np.concatenate([part.starts for part in parts]),
        sum(part.n_bytes for part in parts),
    )


def token_dtype(tokenizer: Tokenizer) -> type[np.uint16] | type[np.uint32]:
    """The smallest integer type for all token ids."""
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


def token_parts(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[TokenStream]:
    """The stream of the documents in consecutive parts; `starts` are positions in the full stream.

    The end-of-text token after a document is a target if the last part of the document is.

    Raises:
        CorpusError: if there is no document.
    """
    dtype = token_dtype(tokenizer)
    end = np.array([tokenizer.end_of_text_id], dtype)
    length, end_is_target = 0, True
    for chunk in _chunks(documents):
        texts = [part for document in chunk for part in document.parts]
        encoded = iter(tokenizer.encode_documents([text for text, _ in texts]))
        tokens: list[np.ndarray] = []
        loss_mask: list[np.ndarray] = []
        starts: list[int] = []
        for document in chunk:
            if not document.continues or not length:
                starts.append(length)
                tokens.append(end)
                loss_mask.append(np.array([end_is_target]))
                length += 1
            for _, end_is_target in document.parts:
                ids = np.array(next(encoded), dtype)
                tokens.append(ids)
                loss_mask.append(np.full(len(ids), end_is_target))
                length += len(ids)
        n_bytes = sum(len(text.encode()) for text, is_target in texts if is_target)
        yield TokenStream(np.concatenate(tokens), np.concatenate(loss_mask), np.array(starts, np.int64), n_bytes)
    if not length:
        raise CorpusError("there is no document to train on.")
    yield TokenStream(end, np.array([end_is_target]), np.array([], np.int64), 0)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of documents with enough text for a parallel call."""
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += sum(len(text) for text, _ in document.parts)
        if characters >= _CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
