"""The source of a text: everything that is needed to read it, whether it is local or remote.

`hub.text_sources` finds sources by name. This package only reads them, and opens no network connections itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

Opener = Callable[[str], BinaryIO]  # opens a file by its path or URL


class RowStream(Protocol):
    """Rows as dictionaries, with a position that can be restored: an `IterableDataset` of the library `datasets`."""

    column_names: list[str] | None

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def open_local(path: str) -> BinaryIO:
    """Open a local file."""
    return open(path, "rb")


@dataclass(frozen=True)
class TextSource:
    """One split of a corpus.

    name: the user's name of the corpus, for messages. config, split: which part of it this is.
    fingerprint: returns strings that identify the content; it may read all of it.
    files: to read row by row, opened by `open_file`; None: `open_rows` returns the rows.
    """

    name: str
    config: str | None
    split: str
    fingerprint: Callable[[], list[str]]
    files: tuple[str, ...] | None = None
    open_file: Opener = open_local
    open_rows: Callable[[], RowStream] | None = None
