"""Incremental decoding of token ids, with the same text as decoding all ids at once.

The text of the `tokenizers` library can depend on later tokens in two ways, and such text is held back:

- ByteLevel (GPT-2): the bytes of a character may be spread over tokens.
- ByteFallback (Llama): a run of byte tokens such as <0xC3> <0xA9> is text if all of it is valid UTF-8, and one U+FFFD
  for each byte otherwise. So its text is known when the run ends, or when it can no longer become valid.

Everything else that decoders do depends on the previous token, or on whether a token is the first one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer as Backend

from transformer.errors import CheckpointError

_CONTEXT = 8  # ids that stay in the window: more than a character has bytes
_PROMPT_CONTEXT = 64  # ids of a prompt that are decoded
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_CONTINUATIONS = ("¿", "Ģ")  # the bytes BF and 80 in ByteLevel's alphabet: after any first byte, one of them is valid
_REPLACEMENT = "\ufffd"


def decode(backend: Backend, ids: Sequence[int], skip_special: bool = True) -> str:
    """The text of `ids`.

    Raises:
        CheckpointError: if the library panics, as when a decoder strips the end of an empty text.
    """
    try:
        text: str = backend.decode(list(ids), skip_special_tokens=skip_special)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"the tokenizer's decoder fails on {len(ids):,} tokens: {error}.") from error
    return text


class StreamDecoder:
    """Decodes token ids one at a time; a piece of text never ends within a UTF-8 character.

    The pieces from `add` and `finish`, joined, are the text of `Tokenizer.decode` for all ids. Bytes that are not UTF-8
    become U+FFFD. The time for an id does not grow with the number of ids before it.

    Args:
        backend: the tokenizer of the `tokenizers` library.
        before: ids before the text, such as a prompt. If they end within a character, it is in the first piece.
    """

    def __init__(self, backend: Backend, before: Sequence[int] = ()) -> None:
        self._backend = backend
        self._special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self._has_byte_tokens = _has_byte_fallback(backend)
        self._ids: list[int] = []  # the window: ids whose text is held back, and some before them
        self._shown = 0  # characters of the window's text that were returned
        self._run = _ByteRun()
        for id in self._last(before):
            self.add(id)
        if self._run.open:
            complete = self._ids[: len(self._ids) - self._run.pending]
            self._shown = len(self._decode(complete))
            self._run.characters.clear()

    def add(self, id: int) -> str:
        """The text that is known with this id; empty within a character of several tokens."""
        token = self._token(id)
        if token is None:
            return ""
        byte = self._byte(token)
        if byte is None:
            self._run = _ByteRun()
            self._ids.append(id)
            return self._release()
        if self._run.invalid:  # and remains so; the cause is in the window
            return _REPLACEMENT
        self._ids.append(id)
        self._run.add(byte)
        return self._release() if self._run.invalid else ""

    def finish(self) -> str:
        """The text that was held back; an incomplete character becomes U+FFFD."""
        text = self._decode(self._ids)
        piece, self._shown = text[self._shown :], len(text)
        return piece

    def held(self, length: int) -> str:
        """The last `length` characters of the text of `finish`; "" if that ends with U+FFFD."""
        return "" if self._run.pending or not length else "".join(self._run.characters[-length:])

    def _release(self) -> str:
        text = self._certain(self._decode(self._ids))
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        if len(self._ids) > 2 * _CONTEXT and not self._run.open:
            kept = self._decode(self._ids[-_CONTEXT:])
            if kept:  # otherwise a decoder would strip the start of the text again
                self._ids = self._ids[-_CONTEXT:]
                self._shown = len(self._certain(kept))
        return piece

    def _certain(self, text: str) -> str:
        """The text of the window without an incomplete character at its end."""
        decoder = self._backend.decoder
        if not text.endswith(_REPLACEMENT) or decoder is None or self._run.invalid:
            return text
        tokens = [self._backend.id_to_token(id) for id in self._ids]
        # A byte that continues the last character does not lengthen the text; any other byte is a character of its own.
        incomplete = any(len(decoder.decode([*tokens, byte])) == len(text) for byte in _CONTINUATIONS)
        return text[:-1] if incomplete else text

    def _decode(self, ids: Sequence[int]) -> str:
        try:
            return decode(self._backend, ids) if ids else ""
        except CheckpointError:  # an empty text, whose end a decoder strips
            return ""

    def _token(self, id: int) -> str | None:
        """The token; None: it is special, which decoding skips."""
        token: str | None = None if id in self._special else self._backend.id_to_token(id)
        return token

    def _byte(self, token: str) -> int | None:
        match = _BYTE.fullmatch(token) if self._has_byte_tokens else None
        return int(match[1], 16) if match else None

    def _last(self, ids: Iterable[int]) -> list[int]:
        """The last ids of text, extended to the start of a run of byte tokens."""
        visible = [(id, token) for id in ids if (token := self._token(id)) is not None]
        start = max(0, len(visible) - _PROMPT_CONTEXT)
        while 0 < start < len(visible) and self._byte(visible[start][1]) is not None:
            start -= 1
        return [id for id, _ in visible[start:]]


class _ByteRun:
    """A run of byte tokens.

    Attributes:
        characters: the complete ones. pending: bytes of an incomplete character. invalid: whether it is not UTF-8.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self.characters: list[str] = []
        self.pending = 0
        self.invalid = False

    @property
    def open(self) -> bool:
        return not self.invalid and bool(self.characters or self.pending)

    def add(self, byte: int) -> None:
        try:
            character = self._decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            self.invalid, self.pending = True, 0
            self.characters.clear()
            return
        self.pending = 0 if character else self.pending + 1
        self.characters += character


def _has_byte_fallback(backend: Backend) -> bool:
    if backend.decoder is None:
        return False
    rules = json.loads(backend.decoder.__getstate__())
    return any(rule["type"] == "ByteFallback" for rule in rules.get("decoders", [rules]))
