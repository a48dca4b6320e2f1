"""Tokenised data sets written back as people write, for models that read plain text.

WikiText (Merity et al., 2016, arXiv 1609.07843) was tokenised for models of words: spaces stand around every mark, a
hyphen is " @-@ ", a heading "= = History = =". A model of plain text is fairly scored on the text before that. What
the task `wikitext` of EleutherAI's lm-evaluation-harness scores is written here again, character for character
(github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/wikitext/preprocess_wikitext.py, as of August 2026), so
that results compare. Its oddities are part of that: " N " is a number in Penn Treebank, not in WikiText.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# The order matters, within a table and among the three steps of `wikitext`.
_WITHIN_WORDS = {"s '": "s'", " @-@ ": "-", " @,@ ": ",", " @.@ ": "."}
_MARKS = {f" {mark} ": f"{mark} " for mark in ":;.!?,"}
_PAIRS = ("()", "[]", "{}", '""', "''")
_HEADINGS = {" ".join("=" * level): "=" * level for level in (4, 3, 2)}
_REST = {" ° ": "°", " \n": "\n", "\n ": "\n", " N ": " 1 ", " 's": "'s"}


def wikitext(page: str) -> str:
    """A page of WikiText as plain text: marks joined to their words, headings "== History ==".

    One rule of the original is left out: it was meant for an apostrophe before a number, and no page has what it
    looks for, which is a slash, "' ", a digit and a slash.
    """
    text = _replace(page, _WITHIN_WORDS | _MARKS)
    for pair in _PAIRS:
        text = _close_up(text, *pair)
    return _replace(text, _HEADINGS | _REST)


DETOKENIZERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext}


def _replace(text: str, table: dict[str, str]) -> str:
    for tokenised, plain in table.items():
        text = text.replace(tokenised, plain)
    return text


def _close_up(text: str, opening: str, closing: str) -> str:
    """White space taken off inside each pair of marks; a pair ends at the first closing mark after its opening."""
    inside = f"{re.escape(opening)}([^{re.escape(closing)}]*){re.escape(closing)}"
    return re.sub(inside, lambda match: opening + match[1].strip() + closing, text)
