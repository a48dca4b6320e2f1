"""`card`: measure a trained model and write its model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from transformer.cli.shared_options import Commands, add_command


def add_card(commands: Commands) -> None:
    parser = add_command(commands, "card", card, "measure a trained model and write its model card")
    parser.add_argument("model", help="folder of a model that train.py made")
    parser.add_argument("--data", required=True, help="what it was trained on, in words")
    parser.add_argument("--license", help="license of that data, as the Hub names it: cc-by-sa-4.0")
    parser.add_argument(
        "--evaluate", action="append", default=[], metavar="NAME=DATA", help="score the validation split of DATA"
    )


def card(options: argparse.Namespace) -> None:
    """Measure a model on validation texts and write its card."""
    from transformer.evaluation import Scores, agreement
    from transformer.evaluation import evaluate as score
    from transformer.hub.checkpoint import load
    from transformer.hub.text_sources import documents
    from transformer.inference import select_backend
    from transformer.reporting.loss_curve import draw_curve
    from transformer.reporting.model_card import write_card

    model, tokenizer = load(options.model)
    draw_curve(Path(options.model))
    # int8 is what `--dtype auto` serves on most servers.
    rounded = select_backend(model, "int8")
    models: dict[str, Scores] = {"": model, " (int8)": rounded}
    evaluations, remarks = [], []
    for named in options.evaluate:
        name, _, source = named.partition("=")
        for suffix, scored in models.items():
            evaluations.append((name + suffix, score(scored, tokenizer, documents(source, split="validation"))))
        texts = (document.text for document in documents(source, split="validation"))
        both = agreement(model, rounded, tokenizer, texts)
        share = f"{both.same / both.places:.1%} of {both.places:,} places"
        remarks.append(f"In int8 the likeliest next token is the one it is in fp32 at {share} ({name}).")
    write_card(options.model, evaluations, options.data, options.license, remarks)
