"""The options of the commands that generate text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from transformer.cli.shared_options import StoreGiven, add_model
from transformer.console import typed
from transformer.errors import ConfigError

if TYPE_CHECKING:
    from transformer.inference import SamplingOptions


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The model, how it samples, and how it chats."""
    add_model(parser, dtype="auto")
    add = parser.add_argument
    add("--max-tokens", type=int, default=256, help="at most this many new tokens")
    add("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    add("--top-k", type=int, action=StoreGiven, default=50, help="only the k likeliest tokens; 0: off")
    add("--top-p", type=float, action=StoreGiven, default=0.95, help="only the likeliest tokens of this probability")
    add("--min-p", type=float, action=StoreGiven, default=0.0, help="only tokens this much as likely as the likeliest")
    add("--repetition-penalty", type=float, default=1.1, help="1: off")
    add("--min-tokens", type=int, default=0, help="the text does not end before this many tokens")
    add("--stop", action="append", type=typed, default=[], help="end before this string; may be given several times")
    add("--seed", type=int, action=StoreGiven, help="the same seed gives the same text")
    add("--system", type=typed, default="", help="system prompt of a chat: how the model is to answer")
    add(
        "--enable-thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether it thinks before it answers in a chat, for models that can do both",
    )


def read_sampling(options: argparse.Namespace) -> SamplingOptions:
    """How to sample.

    Raises:
        ConfigError: if a value is out of its range, or an option has no effect.
    """
    from transformer.inference import SamplingOptions
    from transformer.inference.sampling import GREEDY

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_tokens", "seed")
    sampling = SamplingOptions(stop=tuple(options.stop), **{name: getattr(options, name) for name in names})
    if sampling.temperature <= GREEDY and (given := getattr(options, "given", ())):
        raise ConfigError(
            f"{' and '.join(given)}: no effect with --temperature {options.temperature:g}, where the next token is "
            f"always the likeliest. Leave {'it' if len(given) == 1 else 'them'} out, or raise --temperature."
        )
    return sampling
