"""The options of the commands that generate text."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from transformer.cli.shared_options import StoreGiven, add_model
from transformer.console import typed
from transformer.errors import ConfigError

if TYPE_CHECKING:
    from transformer.inference import Generator, SamplingOptions

_BY_MODEL = " (default: that of the model's generation_config.json)"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options of the model, of sampling, and of chats."""
    add_model(parser, dtype="auto")
    add = parser.add_argument
    add("--max-tokens", type=int, default=256, help="at most this many new tokens")
    by_model = functools.partial(add, default=argparse.SUPPRESS)  # not in the namespace unless given
    by_model("--temperature", type=float, help=f"randomness; 0: always the most likely token{_BY_MODEL}")
    by_model("--top-k", type=int, action=StoreGiven, help=f"sample from the k most likely tokens; 0: off{_BY_MODEL}")
    by_model(
        "--top-p",
        type=float,
        action=StoreGiven,
        help=f"sample from tokens of this total probability; 1: off{_BY_MODEL}",
    )
    by_model(
        "--min-p",
        type=float,
        action=StoreGiven,
        help=f"minimum, relative to the most likely; 0: off{_BY_MODEL}",
    )
    by_model("--repetition-penalty", type=float, help=f"penalty of tokens that occurred before; 1: off{_BY_MODEL}")
    add("--min-tokens", type=int, default=0, help="the text does not end before this many tokens")
    add("--stop", action="append", type=typed, default=[], help="end before this string; may be given several times")
    add("--seed", type=int, action=StoreGiven, help="the same seed gives the same text")
    add("--system", type=typed, default="", help="system prompt of a chat: how the model is to answer")
    add(
        "--template-option",
        action="append",
        type=typed,
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the model's chat template, with its value in JSON or as text; may be given several times. "
        "chat_template=NAME: which of several templates is used",
    )
    add(
        "--enable-thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="short for --template-option enable_thinking=true or false: whether the model thinks before it answers",
    )


def read_template_options(options: argparse.Namespace) -> dict[str, Any]:
    """The variables of the chat template from the options.

    Raises:
        ConfigError: if one has no name, or is given twice.
    """
    from transformer.inference.chat import merge_template_options, template_option

    return merge_template_options(map(template_option, options.template_option), options.enable_thinking)


def name_template_option(options: argparse.Namespace) -> str:
    """The name of the given option that sets variables of the template, for messages."""
    return "--template-option" if options.template_option else "--enable-thinking"


def load_with_sampling(options: argparse.Namespace) -> tuple[Generator, SamplingOptions, str]:
    """The model of --model, its sampling options, and a description of the source of each option.

    Raises:
        ConfigError: if a value is out of range, or an option has no effect.
    """
    from transformer.hub.checkpoint import load
    from transformer.hub.generation_config import read_sampling
    from transformer.hub.resolve import fetch
    from transformer.inference import Generator, combine_settings
    from transformer.inference.sampling import MODEL_SETTINGS

    folder = fetch(options.model)
    names = {*MODEL_SETTINGS, "max_tokens", "min_tokens", "seed"}
    given = {name: value for name, value in vars(options).items() if name in names}
    sampling, sources = combine_settings(read_sampling(folder), {**given, "stop": tuple(options.stop)})
    _expect_effect(options, sampling)
    return Generator(*load(folder, keep_half=True), options.dtype), sampling, sources


def _expect_effect(options: argparse.Namespace, sampling: SamplingOptions) -> None:
    from transformer.inference.sampling import GREEDY

    if sampling.temperature <= GREEDY and (given := getattr(options, "given", ())):
        raise ConfigError(
            f"{' and '.join(given)}: no effect with --temperature {sampling.temperature:g}, which always takes the "
            f"most likely token. Leave {'it' if len(given) == 1 else 'them'} out, or raise --temperature."
        )
