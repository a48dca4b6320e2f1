"""`evaluate`: perplexity per token, per word, and bits per byte."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import TYPE_CHECKING

from transformer.cli.shared_options import Commands, add_command, add_data, add_model, load_generator

if TYPE_CHECKING:
    from transformer.evaluation import Evaluation

_UNITS = ("token_perplexity", "word_perplexity", "harness_word_perplexity", "byte_perplexity", "bits_per_byte")


def add_evaluate(commands: Commands) -> None:
    parser = add_command(commands, "evaluate", evaluate, "perplexity per token, per word, and bits per byte")
    add_model(parser, dtype="fp32")
    add_data(parser, "file, folder, or Hub data set")
    parser.add_argument("--text-column", help="column of the rows that holds the text; default: those known")
    parser.add_argument("--split", default="validation", help="split; a single file has only 'train'")
    parser.add_argument("--context", type=int, help="tokens in a window; default: the model's context")
    parser.add_argument("--stride", type=int, help="tokens from one window to the next; default: half the context")
    parser.add_argument(
        "--detokenize",
        choices=("wikitext",),
        help="detokenize this data set; words and bytes are those of the original text. With --stride equal to the "
        "context, results are those of lm-evaluation-harness",
    )
    parser.add_argument("--json", action="store_true", help="print everything measured as one JSON object")


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a model, and print the results."""
    from transformer.evaluation import DETOKENIZERS
    from transformer.evaluation import evaluate as score
    from transformer.hub.text_sources import documents

    generator = load_generator(options)
    texts = documents(options.data, options.data_config, options.split, options.text_column)
    detokenize = DETOKENIZERS[options.detokenize] if options.detokenize else None
    evaluation = score(
        generator.model, generator.tokenizer, texts, options.context, options.stride, detokenize=detokenize
    )
    if options.json:
        measured = {name: getattr(evaluation, name) for name in _UNITS} | dataclasses.asdict(evaluation)
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}  # JSON has no inf
        print(json.dumps({**finite, "detokenize": options.detokenize}, indent=2))
    else:
        _print(evaluation, detokenised=bool(detokenize))


def _print(e: Evaluation, detokenised: bool) -> None:
    of_what = " of the original text" if detokenised else ""
    print(f"perplexity per token  {e.token_perplexity:.3f}   ({e.tokens:,} tokens of this model's tokenizer)")
    print(f"perplexity per word   {e.word_perplexity:.3f}   ({e.words:,} words{of_what}, separated by white space)")
    if detokenised:
        words = f"{e.harness_words:,} words as counted by lm-evaluation-harness, with white space around pages"
        print(f"                      {e.harness_word_perplexity:.3f}   ({words})")
    print(f"bits per byte         {e.bits_per_byte:.4f}   ({e.n_bytes:,} bytes of UTF-8{of_what})")
    print(f"nats                  {e.nats:.1f}   ({e.documents:,} documents, context {e.context}, stride {e.stride})")
