"""`conversations`: write conversations about the articles of a data set, to fine-tune on."""

from __future__ import annotations

import argparse
import json

from transformer.cli.shared_options import Commands, add_command, add_data, location


def add_conversations(commands: Commands) -> None:
    parser = add_command(
        commands, "conversations", conversations, "make conversations about the articles of a data set"
    )
    add_data(parser, "rows with a title and a text")
    parser.add_argument("--output", type=location, required=True, help="the JSON lines to write")
    parser.add_argument("--text-share", type=float, default=0.1, help="fraction of the articles added as plain text")
    parser.add_argument("--max-documents", type=int, help="read the first articles only, at most this many")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions and of their order")


def conversations(options: argparse.Namespace) -> None:
    """Write conversations about the articles of a data set, as JSON lines to fine-tune on."""
    from transformer.data.conversation_dataset import conversation_rows, titled_articles
    from transformer.files import atomic_write
    from transformer.hub.text_sources import find_text

    articles = titled_articles(find_text(options.data, options.data_config), options.max_documents)
    rows = conversation_rows(articles, options.text_share, seed=options.seed)
    with atomic_write(options.output) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    talks = sum("messages" in row for row in rows)
    print(f"{options.output}: {talks:,} conversations, {len(rows) - talks:,} articles")
