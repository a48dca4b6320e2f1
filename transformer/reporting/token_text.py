"""Tokens as text on an HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from transformer.data.tokenizer import Tokenizer

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}  # of control characters
# Invisible characters that change the direction of text around them.
_DIRECTIONS = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}
_NO_CHARACTERS = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}  # not allowed in XML
_VISIBLE = _PICTURES | _DIRECTIONS | _NO_CHARACTERS


@dataclass(frozen=True)
class Token:
    """A token of a text, or the one before the text.

    piece: its part of the text; "" for a further token of a character, which belongs to its first token.
    begins: whether this is the token before the text.
    """

    id: int
    piece: str
    begins: bool = False


def tokens_of(tokenizer: Tokenizer, text: str) -> list[Token]:
    """The token before a text, as in the evaluation, and the tokens of the text."""
    begin = Token(tokenizer.encode_prompt("")[0], "", begins=True)
    return [begin, *(Token(*piece) for piece in tokenizer.pieces(text))]


def visible(text: str) -> str:
    """The text with symbols for invisible characters; line ends and tabs stay after their symbol."""
    kept = _VISIBLE | {ord("\n"): "↵\n", ord("\t"): "⇥\t"}
    return text.translate(kept)


def on_one_line(text: str) -> str:
    """As `visible`, without line ends and tabs, and with symbols for spaces at both ends."""
    shown = text.translate(_VISIBLE | {ord("\n"): "↵", ord("\t"): "⇥"})
    inner = shown.strip(" ")
    if not inner:
        return "␣" * len(shown)
    ahead = len(shown) - len(shown.lstrip(" "))
    return "␣" * ahead + inner + "␣" * (len(shown) - ahead - len(inner))


def name_of(tokenizer: Tokenizer, token: Token | int) -> str:
    """The name of a token outside of a text: its text, or its entry in the vocabulary if it has none."""
    if isinstance(token, Token) and token.piece:
        return on_one_line(token.piece)
    number = token.id if isinstance(token, Token) else token
    text = tokenizer.decode([number])
    if text and "\ufffd" not in text:
        return on_one_line(text)
    return on_one_line(tokenizer.backend.id_to_token(number) or f"token {number}")


def spans(tokenizer: Tokenizer, tokens: Sequence[Token], styles: Sequence[str] = ()) -> str:
    """The tokens as running text, in one focusable <span> each.

    A further token of a character has no width, so that ligatures stay; the style sheet shows it as a dot beneath.

    Args:
        styles: CSS declarations for each token.
    """
    marked, inner = [], 0
    for number, token in enumerate(tokens):
        inner = 0 if token.piece or token.begins else inner + 1
        kind = "begin" if token.begins else "inner" if inner else ""
        style = (styles[number] if styles else "") + (f";--i:{inner}" if inner else "")
        shown = name_of(tokenizer, token) if token.begins else visible(token.piece)
        head = f'<span class="token {kind}" data-n="{number}" role="button" tabindex="{-1 if number else 0}"'
        marked.append(f"{head}{f' style={chr(34)}{style}{chr(34)}' if style else ''}>{escape(shown)}</span>")
    return "".join(marked)


def data(value: Any) -> str:
    """A value as JavaScript that is safe in a <script> element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
