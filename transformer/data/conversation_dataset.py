"""A data set for fine-tuning: conversations about articles, and the small talk of `small_talk.json`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transformer.data.article_questions import Turn, conversations
from transformer.data.corpus import columns_of
from transformer.data.text_source import TextSource
from transformer.data.wikipedia import clean_article, fault_of
from transformer.errors import ConfigError

Row = dict[str, Any]  # {"messages": [...]} for a conversation, or {"text": ...} for an article

_SMALL_TALK = Path(__file__).with_name("small_talk.json")
_GREETED = 0.05  # fraction of the conversations about articles that start with a greeting
_WITH_SYSTEM = 0.03  # fraction of the conversations with a system prompt
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are an encyclopedia.",
    "Answer briefly.",
    "Answer the user's questions in whole sentences.",
    "You are a friendly assistant that answers questions about people, places and things.",
)


def titled_articles(source: TextSource, max_documents: int | None = None) -> Iterator[tuple[str, str]]:
    """The titles and cleaned texts of the articles in a data set with columns "title" and "text".

    Args:
        max_documents: read at most this many rows, including articles that are left out; None: all.

    Raises:
        ConfigError: if `max_documents` is less than 1.
        CorpusError: if it cannot be read, or has no such columns.
    """
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"max_documents must be at least 1, not {max_documents}.")
    for title, text in islice(columns_of(source, ("title", "text")), max_documents):
        cleaned = clean_article(text)
        if fault_of(cleaned) is None:
            yield title.strip(), cleaned


def conversation_rows(
    articles: Iterable[tuple[str, str]], text_share: float = 0.1, small_talk_repeats: int = 8, seed: int = 0
) -> list[Row]:
    """Conversations about the articles, small talk, and some of the articles as plain text, in random order.

    Args:
        articles: title and cleaned text of each.
        text_share: fraction of the articles, in [0, 1], that are added as plain text, so that a model that is
            fine-tuned on the rows still continues texts.
        small_talk_repeats: how often each message of the small talk is in the data.
        seed: of all random choices.

    Raises:
        ConfigError: if text_share is not in [0, 1].
    """
    if not 0 <= text_share <= 1:
        raise ConfigError(f"text_share must be in [0, 1], not {text_share}.")
    rng = random.Random(seed)
    small_talk: list[dict[str, list[str]]] = json.loads(_SMALL_TALK.read_text(encoding="utf-8"))
    greetings = small_talk[0]
    rows: list[Row] = []
    for title, text in articles:
        for turns in conversations(title, text, seed):
            greeting = [(rng.choice(greetings["user"]), rng.choice(greetings["assistant"]))]
            rows.append(_row(greeting + turns if rng.random() < _GREETED else turns, rng))
        if rng.random() < text_share:
            rows.append({"text": text})
    for turns in _small_talk(small_talk, small_talk_repeats, rng):
        rows.append(_row(turns, rng))
    rng.shuffle(rows)
    return rows


def _small_talk(entries: list[dict[str, list[str]]], repeats: int, rng: random.Random) -> Iterator[list[Turn]]:
    """Each message `repeats` times with one of its answers; some conversations have several of them."""
    before: list[Turn] = []
    for _ in range(repeats):
        turns = [(user, rng.choice(entry["assistant"])) for entry in entries for user in entry["user"]]
        rng.shuffle(turns)
        for turn in turns:
            before = [*before, turn]
            if rng.random() < 0.7:
                yield before
                before = []
    if before:
        yield before


def _row(turns: list[Turn], rng: random.Random) -> Row:
    messages = []
    if rng.random() < _WITH_SYSTEM:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages}
