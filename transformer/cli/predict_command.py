"""`predict`: continue a prompt, or answer it."""

from __future__ import annotations

import argparse
import sys

from transformer.cli.sampling_options import (
    add_sampling,
    load_with_sampling,
    name_template_option,
    read_template_options,
)
from transformer.cli.shared_options import Commands, add_command
from transformer.console import typed
from transformer.data.template_files import CHAT_HINT
from transformer.errors import ConfigError

DEFAULT_PROMPT = "The history of the city"
_MAX_OUTPUTS = 4096  # in one batch


def add_predict(commands: Commands) -> None:
    parser = add_command(commands, "predict", predict, "continue a prompt")
    parser.add_argument("prompt", nargs="?", type=typed, default=DEFAULT_PROMPT, help="the beginning of a text")
    parser.add_argument("--chat", action="store_true", help="answer the prompt by the model's chat template")
    parser.add_argument(
        "--num-outputs", type=_number_of_outputs, default=1, help="number of samples, generated in one batch"
    )
    add_sampling(parser)


def predict(options: argparse.Namespace) -> None:
    """Print the prompt and its continuation, or the answer of a chat, while it is generated; or several samples."""
    from transformer.inference import answer, messages_of

    template_options = read_template_options(options)
    generator, sampling, sources = load_with_sampling(options)
    chats = options.chat or bool(options.system)
    if chats and options.num_outputs > 1:
        raise ConfigError("--num-outputs is for texts that continue a prompt: a chat has one answer.")
    if template_options and not chats:
        raise ConfigError(f"{name_template_option(options)} is for a chat: give --chat too.")
    if chats:
        generation = answer(generator, messages_of(options.prompt, options.system), sampling, template_options)
    else:
        generation = generator.generate(options.prompt, sampling)
        if generator.tokenizer.chat_templates:
            print(f"{CHAT_HINT} --chat answers the prompt as a chat.", file=sys.stderr)
    print(sources, file=sys.stderr)
    if options.num_outputs > 1:
        completions = generator.generate_batch([options.prompt] * options.num_outputs, sampling)
        for number, completion in enumerate(completions, 1):
            print(f"--- {number} ---\n{options.prompt}{completion.text}")
        return
    if not chats:
        sys.stdout.write(options.prompt)
    for piece in generation:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if sys.stderr.isatty():
        print(
            f"[{generation.prompt_tokens} + {generation.completion_tokens} tokens, "
            f"{generation.tokens_per_second:.0f} tokens/s, ended by {generation.stop_reason}]",
            file=sys.stderr,
        )


def _number_of_outputs(text: str) -> int:
    if not 1 <= (number := int(text)) <= _MAX_OUTPUTS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MAX_OUTPUTS:,}, not {text}")
    return number
