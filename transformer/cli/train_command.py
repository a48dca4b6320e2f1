"""Training on the command line: `python train.py`, and `python -m transformer train`."""

from __future__ import annotations

import argparse
import logging
import sys

from transformer.cli.shared_options import Commands, add_training_command
from transformer.console import replace_unencodable_characters
from transformer.credentials import guard_output
from transformer.errors import ConfigError, TransformerError, sentence
from transformer.training.interrupt import Interrupted


def add_train(commands: Commands) -> None:
    add_training_command(commands, "train", train, "train a model")


def train(options: argparse.Namespace) -> int:
    """Train a model; the options are those of `train.py`."""
    return run(options.rest, "python -m transformer train")


def run(arguments: list[str], program: str) -> int:
    """Train with these options. Returns the exit status: 1 after an error, 128 + the signal if the run was stopped.

    Args:
        program: the name of the command, for messages.
    """
    guard_output()
    replace_unencodable_characters()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _train(arguments, program)
    except TransformerError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 128 + error.signal if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print(f"{program}: stopped; the same command resumes from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def _train(arguments: list[str], program: str) -> None:
    try:
        from transformer.training.options import parse
        from transformer.training.run import train
    except ModuleNotFoundError as error:
        raise ConfigError(sentence(error)) from error
    train(parse(arguments, program))
