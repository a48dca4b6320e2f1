"""Answers in a conversation, for models that have a chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from transformer.data.chat_template import chat_tokens
from transformer.data.conversation import CHAT_TEMPLATE, NEXT_TURN
from transformer.inference.generator import Generation, Generator
from transformer.inference.sampling import SamplingOptions


def messages_of(prompt: str, system_prompt: str = "") -> list[dict[str, str]]:
    """A conversation that begins with what the user says."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def answer(
    generator: Generator,
    messages: Sequence[Mapping[str, str]],
    options: SamplingOptions | None = None,
    enable_thinking: bool | None = None,
) -> Generation:
    """The assistant's next answer, as `Generator.generate` gives a text.

    Args:
        enable_thinking: for templates that know it, such as Qwen3's; None: the template's own default.

    Raises:
        ChatError: if the model has no chat template, or that does not take these messages.
    """
    options = options or SamplingOptions()
    if generator.tokenizer.chat_template == CHAT_TEMPLATE:  # its turns end in plain text, not with a token
        options = dataclasses.replace(options, stop=(*options.stop, NEXT_TURN))
    return generator.generate(chat_tokens(generator.tokenizer, messages, enable_thinking), options)
