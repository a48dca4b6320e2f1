"""`chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys

from transformer.cli.sampling_options import add_sampling, read_sampling
from transformer.cli.shared_options import Commands, add_command, load_generator
from transformer.errors import ConfigError


def add_chat(commands: Commands) -> None:
    add_sampling(add_command(commands, "chat", chat, "answer what you type, or continue it line by line"))


def chat(options: argparse.Namespace) -> None:
    """A conversation, if the model has a chat template; without one, each line is continued."""
    from transformer.inference import answer

    generator, sampling = load_generator(options), read_sampling(options)
    has_template = generator.tokenizer.chat_template is not None or bool(generator.tokenizer.chat_template_names)
    if not has_template and options.enable_thinking is not None:
        raise ConfigError("--enable-thinking is for models with a chat template, which this one lacks.")
    if not has_template and options.system:
        raise ConfigError("--system is for models with a chat template, which this one lacks.")
    messages = [{"role": "system", "content": options.system}] if options.system else []
    print(f"Type {'a message' if has_template else 'the beginning of a text'}. An empty line or Ctrl-D ends.")
    while prompt := _ask():
        sys.stdout.write("Model: ")
        messages.append({"role": "user", "content": prompt})
        pieces = (
            answer(generator, messages, sampling, options.enable_thinking)
            if has_template
            else generator.generate(prompt, sampling)
        )
        reply = ""
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            reply += piece
        messages.append({"role": "assistant", "content": reply})
        print()


def _ask() -> str:
    """The next line that is typed; empty: there is none."""
    try:
        return input("\nYou: ")
    except EOFError:
        print()
        return ""
