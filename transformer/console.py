"""Text from and to terminals of any encoding."""

from __future__ import annotations

import sys
from contextlib import suppress


def replace_unencodable_characters() -> None:
    """Replace characters that standard input, output or error cannot encode or decode, instead of raising an error.

    The encodings stay those of PYTHONIOENCODING or the locale.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # no text stream, or a closed one
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def typed(text: str) -> str:
    """A command line argument as text. In a locale other than UTF-8 Python keeps its bytes as lone surrogates."""
    has_bytes = any("\udc80" <= character <= "\udcff" for character in text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if has_bytes else text
