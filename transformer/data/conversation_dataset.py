"""A data set of conversations about articles, with the small talk of `small_talk.json`, to fine-tune on."""

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

Row = dict[str, Any]  # {"messages": [...]} of a conversation, or {"text": ...} of an article that is only continued

_SMALL_TALK = Path(__file__).with_name("small_talk.json")
_GREETED = 0.05  # of the conversations about articles begin with a greeting
_WITH_SYSTEM = 0.03  # of the conversations have a system prompt
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are an encyclopedia.",
    "Answer briefly.",
    "Answer the user's questions in whole sentences.",
    "You are a friendly assistant that answers questions about people, places and things.",
)


def titled_articles(source: TextSource, most: int | None = None) -> Iterator[tuple[str, str]]:
    """Title and cleaned text of the articles of a data set with columns "title" and "text".

    Args:
        most: read only as many rows, stubs that are left out included; None reads all.

    Raises:
        ConfigError: if `most` is no such number.
        CorpusError: if it cannot be read, or has no such columns.
    """
    if most is not None and most < 1:
        raise ConfigError(f"max_documents is how many articles to read, 1 or more, not {most}.")
    for title, text in islice(columns_of(source, ("title", "text")), most):
        cleaned = clean_article(text)
        if fault_of(cleaned) is None:
            yield title.strip(), cleaned


def conversation_rows(
    articles: Iterable[tuple[str, str]], text_share: float = 0.1, small_talk_repeats: int = 8, seed: int = 0
) -> list[Row]:
    """Conversations about the articles, small talk, and a part of the articles as plain text, in a random order.

    Args:
        articles: title and cleaned text of each.
        text_share: part of the articles, in [0, 1], that stand among the conversations as they are, so that a model
            that learns to answer does not forget how to continue a text.
        small_talk_repeats: how often each way to say something in the small talk stands in the data.
        seed: of all that is random; the same articles and seed give the same rows.

    Raises:
        ConfigError: if text_share is no part.
    """
    if not 0 <= text_share <= 1:
        raise ConfigError(f"text_share is a part of the articles, in [0, 1], not {text_share}.")
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
    """Each way to say something `repeats` times; now and then two of them make one conversation."""
    before: list[Turn] = []
    for _ in range(repeats):
        said = [(user, rng.choice(entry["assistant"])) for entry in entries for user in entry["user"]]
        rng.shuffle(said)
        for turn in said:
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
