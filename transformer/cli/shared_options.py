"""Functions for several commands: adding them to the parser, shared options, and opening a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer.inference import Generator

DEFAULT_MODEL = str(Path(__file__).resolve().parents[2] / "weights")
DTYPES = ("auto", "fp32", "bf16", "int8")
Commands = Any  # what argparse.ArgumentParser.add_subparsers returns: its class is private


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], help: str
) -> argparse.ArgumentParser:
    """Add a command; `run` is called with the parsed options."""
    parser = commands.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(run=run, passes_rest=False)
    return parser


def add_training_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], help: str
) -> argparse.ArgumentParser:
    """Add a command with the options of a training, which are passed to `run` unparsed, as `options.rest`."""
    parser = commands.add_parser(name, add_help=False, allow_abbrev=False, help=help)
    parser.set_defaults(run=run, passes_rest=True)
    return parser


def add_model(parser: argparse.ArgumentParser, dtype: str | None = None) -> None:
    """Add --model, and --dtype if there is a default for it."""
    default = DEFAULT_MODEL if Path(DEFAULT_MODEL).is_dir() else None  # an installed package has none
    help = "folder, tar, URL, or Hub id (user/name@revision)"
    parser.add_argument("--model", type=location, default=default, help=help)
    if dtype:
        help = "precision of the weights" + ("; auto: the fastest on this CPU" if dtype == "auto" else "")
        parser.add_argument("--dtype", choices=DTYPES, default=dtype, help=help)


def add_data(parser: argparse.ArgumentParser, help: str) -> None:
    """Add --data and --data-config."""
    parser.add_argument("--data", "--dataset", type=location, required=True, help=help)
    parser.add_argument("--data-config", "--dataset-config", help="configuration of a Hub data set")


def location(text: str) -> str:
    """Check a path, a URL or a name on the Hub."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected the name of a file or a folder, not {text!r}")
    return text


class StoreGiven(argparse.Action):
    """Store the value, and append the option to `given`, the options on the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = [*getattr(namespace, "given", ()), option_string]


def load_generator(options: argparse.Namespace) -> Generator:
    """A generator with the model of --model in the precision of --dtype."""
    from transformer.hub.checkpoint import load
    from transformer.hub.resolve import fetch
    from transformer.inference import Generator

    return Generator(*load(fetch(options.model)), options.dtype)
