"""`show`: write an HTML page with the attention of a model, or the surprisal of tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

from transformer.cli.shared_options import DEFAULT_MODEL, Commands, add_command, add_model, location
from transformer.console import typed


def add_show(commands: Commands) -> None:
    parser = add_command(commands, "show", show, "write a page that shows what the model does with a text")
    parser.add_argument(
        "what", choices=("attention", "tokens"), help="the attention of each head, or the surprisal of each token"
    )
    parser.add_argument("text", type=typed, help="the text that the model reads")
    add_model(parser)
    parser.add_argument("--output", type=location, help="the page; default: attention.html or tokens.html")


def show(options: argparse.Namespace) -> None:
    """Write the page, and print its name."""
    from transformer.files import atomic_write
    from transformer.hub.checkpoint import load
    from transformer.hub.resolve import fetch
    from transformer.reporting import attention_page, tokens_page

    make = {"attention": attention_page, "tokens": tokens_page}[options.what]
    name = "the default model" if options.model == DEFAULT_MODEL else Path(options.model).name
    output = options.output or f"{options.what}.html"
    page = make(*load(fetch(options.model)), options.text, name)
    with atomic_write(output) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    print(output)
