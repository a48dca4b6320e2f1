"""`predict`: continue a prompt, or answer it."""

from __future__ import annotations

import argparse
import sys

from transformer.cli.sampling_options import add_sampling, read_sampling
from transformer.cli.shared_options import Commands, add_command, load_generator
from transformer.console import typed
from transformer.errors import ConfigError

DEFAULT_PROMPT = "The history of the city"
_MAX_OUTPUTS = 4096  # texts that are generated together


def add_predict(commands: Commands) -> None:
    parser = add_command(commands, "predict", predict, "continue a prompt")
    parser.add_argument("prompt", nargs="?", type=typed, default=DEFAULT_PROMPT, help="the beginning of a text")
    parser.add_argument("--chat", action="store_true", help="answer the prompt by the model's chat template")
    parser.add_argument(
        "--num-outputs", type=_number_of_outputs, default=1, help="number of samples, generated in one batch"
    )
    add_sampling(parser)


def predict(options: argparse.Namespace) -> None:
    """Print the prompt and its continuation, or in a chat the answer, as it is generated; or several texts."""
    generator, sampling = load_generator(options), read_sampling(options)
    if options.chat or options.system:
        from transformer.inference import answer, messages_of

        if options.num_outputs > 1:
            raise ConfigError("--num-outputs is for texts that continue a prompt: a chat has one answer.")
        messages = messages_of(options.prompt, options.system)
        generation = answer(generator, messages, sampling, options.enable_thinking)
    elif options.enable_thinking is not None:
        raise ConfigError("--enable-thinking is for a chat: give --chat too.")
    elif options.num_outputs > 1:
        completions = generator.generate_batch([options.prompt] * options.num_outputs, sampling)
        for number, completion in enumerate(completions, 1):
            print(f"--- {number} ---\n{options.prompt}{completion.text}")
        return
    else:
        generation = generator.generate(options.prompt, sampling)
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
