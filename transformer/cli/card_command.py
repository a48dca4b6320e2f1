"""`card`: measure a trained model and write its model card."""

from __future__ import annotations

import argparse
from functools import partial

from transformer.cli.shared_options import Commands, add_command


def add_card(commands: Commands) -> None:
    parser = add_command(commands, "card", card, "measure a trained model and write its model card")
    parser.add_argument("model", help="folder of a model that train.py made")
    parser.add_argument("--data", required=True, help="description of the training data")
    parser.add_argument("--license", help="license of the training data as named on the Hub, such as cc-by-sa-4.0")
    parser.add_argument(
        "--evaluate", action="append", default=[], metavar="NAME=DATA", help="evaluate on the validation split of DATA"
    )


def card(options: argparse.Namespace) -> None:
    """Measure a model on validation texts and write its card."""
    from transformer.hub.text_sources import documents
    from transformer.reporting.measured_card import measure_and_write_card

    named = [text.partition("=")[::2] for text in options.evaluate]
    texts = {name: partial(documents, source, split="validation") for name, source in named}
    measure_and_write_card(options.model, texts, options.data, options.license, int8=True)
