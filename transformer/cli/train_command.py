"""Training on the command line: `python train.py`, and `python -m transformer train`."""

from __future__ import annotations

import argparse
import logging

from transformer.cli.exit_status import exit_status
from transformer.cli.shared_options import Commands, add_training_command
from transformer.console import replace_unencodable_characters
from transformer.credentials import guard_output


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
    stopped = "stopped; the same command resumes from the last checkpoint."
    return exit_status(lambda: _train(arguments, program), program, stopped)


def _train(arguments: list[str], program: str) -> None:
    from transformer.training.options import parse
    from transformer.training.run import train

    train(parse(arguments, program))
