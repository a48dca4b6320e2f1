"""What is read from a terminal and written to it, whatever its encoding is."""

from __future__ import annotations

import sys
from contextlib import suppress


def never_fail_on_characters() -> None:
    """Replace what standard input, output or error cannot encode or decode, where it would raise an error.

    The encodings stay those of the terminal: what was asked for, by PYTHONIOENCODING or the locale, is what it gets.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # another kind of stream, none at all, or one that is closed
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def typed(text: str) -> str:
    """An argument as text. In a locale other than UTF-8 Python keeps its bytes as single surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if _has_bytes(text) else text


def _has_bytes(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)
