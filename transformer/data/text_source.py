"""A text that was found: what is needed to read it, wherever it is.

`hub.text_sources` finds texts by name. This package only reads what it is given, and opens no network connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

Opener = Callable[[str], BinaryIO]  # a file, by its path or address, at its beginning


class RowStream(Protocol):
    """Rows by column, from any position again: an `IterableDataset` of the library `datasets`."""

    column_names: list[str] | None

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def open_local(path: str) -> BinaryIO:
    """A file of this machine."""
    return open(path, "rb")


@dataclass(frozen=True)
class TextSource:
    """One split of a corpus.

    name: what the user calls the corpus, for messages. config, split: which part of it this is.
    fingerprint: gives what changes when the text does; it may read all of it.
    files: those that are read row by row, opened by `open_file`; None: `open_rows` gives the rows.
    """

    name: str
    config: str | None
    split: str
    fingerprint: Callable[[], list[str]]
    files: tuple[str, ...] | None = None
    open_file: Opener = open_local
    open_rows: Callable[[], RowStream] | None = None
