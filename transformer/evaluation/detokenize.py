"""Detokenization of data sets, for models of plain text.

WikiText (Merity et al., 2016, arXiv 1609.07843) was tokenized for models of words: there are spaces around punctuation,
a hyphen is " @-@ ", a heading "= = History = =". This module restores the plain text exactly as the task `wikitext` of
EleutherAI's lm-evaluation-harness does (github.com/EleutherAI/lm-evaluation-harness,
lm_eval/tasks/wikitext/preprocess_wikitext.py, as of August 2026), so that results are comparable. That includes its
oddities: " N " is a number in Penn Treebank, not in WikiText.
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
    """A page of WikiText as plain text: without spaces before punctuation, and with headings "== History ==".

    One rule of the original, for an apostrophe before a number, is left out: its pattern matches in no page.
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
    """Remove white space within each pair of marks; a pair ends at the first closing mark after its opening mark."""
    inside = f"{re.escape(opening)}([^{re.escape(closing)}]*){re.escape(closing)}"
    return re.sub(inside, lambda match: opening + match[1].strip() + closing, text)
