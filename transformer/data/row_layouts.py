"""Layouts of the rows of data sets: the columns with text, and which of them are targets of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformer.data.conversation import Parts, conversation
from transformer.data.document import are_wikitext_lines
from transformer.errors import CorpusError

_KINDS = {  # required columns; the first kind whose columns a data set has is used
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
COLUMNS = frozenset({"input", *(name for names in _KINDS.values() for name in names)})


@dataclass(frozen=True)
class Layout:
    """The layout of rows.

    lines: each row is a line of WikiText, and articles have many rows. column: with the text, if the kind is "text".
    """

    kind: Literal["messages", "conversations", "prompt", "instruction", "text"]
    lines: bool = False
    column: str = "text"

    @property
    def is_conversation(self) -> bool:
        """Whether rows become conversations, "User: ... Assistant: ..."."""
        return self.kind in ("messages", "conversations", "instruction")

    def parts(self, row: Mapping[str, Any]) -> Parts:
        """The text of a row; see `Corpus`.

        Raises:
            CorpusError: if a column has no text. The message does not have the number of the row.
        """
        if self.kind in ("messages", "conversations"):
            if row.get(self.kind) is None and isinstance(row.get("text"), str):  # a row of plain text
                return ((row["text"], True),)
            return conversation(row.get(self.kind))
        if self.kind == "instruction":
            return _instruction(row)
        names = ("prompt", "completion") if self.kind == "prompt" else (self.column,)
        for name in names:
            if not isinstance(row.get(name), str):
                raise CorpusError(
                    f"expected strings, found {row.get(name)!r:.80} in the column {name!r}. "
                    "Leave the row out, or write a text there."
                )
        return tuple((row[name], name != "prompt") for name in names)


def find_layout(
    head: Sequence[Mapping[str, Any]], columns: Sequence[str], source: str, text_column: str | None = None
) -> Layout:
    """The layout of a data set.

    Args:
        head: its first rows. columns: names of its columns, if they are known.
        source: its name, for messages. text_column: the column that the user named; None: none.

    Raises:
        CorpusError: if no column is known to have text.
    """
    filled = {name for row in head for name, value in row.items() if value is not None}
    names = filled or {*columns, *(name for row in head for name in row)}
    every = sorted({*columns, *(name for row in head for name in row)})
    if text_column is not None:
        if text_column not in every:
            raise CorpusError(f"{source} has no column {text_column!r}: it has {', '.join(every) or 'none'}.")
        return Layout("text", _is_lines(head, text_column), text_column)
    for kind, needed in _KINDS.items():
        if names >= set(needed):
            return Layout(kind, kind == "text" and _is_lines(head, "text"))  # type: ignore[arg-type]
    texts = [name for name in every if any(isinstance(row.get(name), str) for row in head)]
    hint = f" --text-column {max(texts, key=lambda name: _length(head, name))} reads one column." if texts else ""
    raise CorpusError(
        f"{source} has no text: expected a column 'text', or 'prompt' and 'completion', or 'messages', or "
        f"'conversations', or 'instruction' and 'output', found {every}.{hint}"
    )


def _is_lines(head: Sequence[Mapping[str, Any]], column: str) -> bool:
    texts = [row.get(column) for row in head]
    strings = [text for text in texts if isinstance(text, str)]
    return len(strings) == len(texts) and are_wikitext_lines(strings)


def _length(head: Sequence[Mapping[str, Any]], column: str) -> int:
    return sum(len(row[column]) for row in head if isinstance(row.get(column), str))


def _instruction(row: Mapping[str, Any]) -> Parts:
    """An instruction, its input if there is one, and its output, as a conversation."""
    asked = [row.get(name) for name in ("instruction", "input")]
    asked = [text for text in asked if text is not None and text != ""]
    if not all(isinstance(text, str) for text in asked):
        raise CorpusError(f"expected strings, found {asked!r:.80} as instruction and input.")
    question, answer = "\n\n".join(asked), row.get("output")  # type: ignore[arg-type]
    for name, text in (("instruction", question), ("output", answer)):
        if not isinstance(text, str) or not text.strip():
            raise CorpusError(f"the {name} is {text!r}: expected text. Leave the row out, or write one.")
    return conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
