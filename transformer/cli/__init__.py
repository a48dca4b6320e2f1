"""`python -m transformer <command>`: the library on the command line, one module for each command.

Slow imports are in the functions of the commands that need them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformer import __version__
from transformer.cli.card_command import add_card
from transformer.cli.chat_command import add_chat
from transformer.cli.conversations_command import add_conversations
from transformer.cli.evaluate_command import add_evaluate
from transformer.cli.exit_status import exit_status
from transformer.cli.import_original_command import add_import_original
from transformer.cli.predict_command import DEFAULT_PROMPT, add_predict
from transformer.cli.preflight_command import add_preflight
from transformer.cli.push_command import add_push
from transformer.cli.shared_options import DEFAULT_MODEL
from transformer.cli.show_command import add_show
from transformer.cli.train_command import add_train
from transformer.console import replace_unencodable_characters
from transformer.credentials import guard_output

__all__ = ["DEFAULT_MODEL", "DEFAULT_PROMPT", "main"]
_COMMANDS = (  # in the order of --help
    add_predict,
    add_chat,
    add_evaluate,
    add_show,
    add_card,
    add_train,
    add_preflight,
    add_push,
    add_conversations,
    add_import_original,
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 1 after an error, whose message is on standard error."""
    guard_output()
    replace_unencodable_characters()
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.passes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    if getattr(options, "model", "") is None:
        parser.error(
            "this installation has no default model, which is part of a checkout. Give --model a folder, a tar, a URL "
            "or a Hub id, such as --model user/name."
        )
    return exit_status(lambda: options.run(options), "transformer")


def _program() -> str:
    """How this program was called: `transformer`, where it is installed, or `python -m transformer`."""
    return "transformer" if Path(sys.argv[0]).stem == "transformer" else "python -m transformer"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_program(), description="The library on the command line.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in _COMMANDS:
        add(commands)
    return parser
