"""`import-original`: a checkpoint of the original project as a model directory."""

from __future__ import annotations

import argparse

from transformer.cli.shared_options import Commands, add_command


def add_import_original(commands: Commands) -> None:
    parser = add_command(
        commands, "import-original", import_original, "import a .pt checkpoint of the original project"
    )
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument("output", help="folder for the model directory")
    parser.add_argument(
        "--tokenizer", help="tokenizer.json, vocab.txt, folder or Hub id, such as openai-community/gpt2"
    )
    parser.add_argument(
        "--heads", choices=("average", "sum"), help="how its heads are combined; default: by the names of its tensors"
    )
    parser.add_argument("--pad-token-id", type=int, help="its padding id; default: by its vocabulary size")


def import_original(options: argparse.Namespace) -> None:
    """Write a checkpoint of the original project as a model directory of the blog preset."""
    from transformer.data.tokenizer import Tokenizer
    from transformer.hub.checkpoint import save
    from transformer.hub.resolve import fetch_tokenizer
    from transformer.legacy.checkpoint_import import load_original

    model = load_original(options.checkpoint, options.heads, options.pad_token_id)
    tokenizer = Tokenizer.load(fetch_tokenizer(options.tokenizer)) if options.tokenizer else None
    save(model, tokenizer, options.output)
    print(f"{options.output}: {model.parameter_count():,} parameters, {model.config}")
    if not options.tokenizer:
        print("It has no tokenizer, which is needed to generate text: pass the one of its training with --tokenizer.")
