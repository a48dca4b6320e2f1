"""`chat`: a conversation in the terminal."""

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
from transformer.errors import ConfigError


def add_chat(commands: Commands) -> None:
    add_sampling(add_command(commands, "chat", chat, "answer what you type, or continue it line by line"))


def chat(options: argparse.Namespace) -> None:
    """Answer each message by the model's chat template; without a template, continue each line."""
    from transformer.inference import answer

    template_options = read_template_options(options)
    generator, sampling, sources = load_with_sampling(options)
    has_template = bool(generator.tokenizer.chat_templates)
    if not has_template and template_options:
        raise ConfigError(f"{name_template_option(options)} is for models with a chat template, which this one lacks.")
    if not has_template and options.system:
        raise ConfigError("--system is for models with a chat template, which this one lacks.")
    messages = [{"role": "system", "content": options.system}] if options.system else []
    print(sources, file=sys.stderr)
    print(f"Type {'a message' if has_template else 'the beginning of a text'}. An empty line or Ctrl-D ends.")
    while prompt := _ask():
        sys.stdout.write("Model: ")
        messages.append({"role": "user", "content": prompt})
        pieces = (
            answer(generator, messages, sampling, template_options)
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
    """The next line of input; "" at the end."""
    try:
        return input("\nYou: ")
    except EOFError:
        print()
        return ""
