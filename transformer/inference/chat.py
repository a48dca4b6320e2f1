"""Chat: answers in a conversation, with models that have a chat template."""

from __future__ import annotations

import bisect
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from transformer.data.chat_template import chat_tokens, select_template
from transformer.data.conversation import CHAT_TEMPLATE, NEXT_TURN
from transformer.data.tokenizer import Tokenizer
from transformer.errors import ConfigError
from transformer.inference.generator import Generation, Generator
from transformer.inference.sampling import SamplingOptions

logger = logging.getLogger("transformer")

_THINKING = "enable_thinking"


def messages_of(prompt: str, system_prompt: str = "") -> list[dict[str, str]]:
    """A conversation of one user message, after a system prompt if there is one."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def template_option(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE. The value is parsed as JSON; what is not JSON is text.

    Raises:
        ConfigError: if there is no name.
    """
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise ConfigError(f"a template option is NAME=VALUE, such as enable_thinking=false, not {text!r:.80}.")
    with suppress(ValueError, RecursionError):
        return name.strip(), json.loads(value)
    return name.strip(), value


def template_options_of(text: str) -> dict[str, Any]:
    """Parse a JSON object of template options. An empty text gives no options.

    Raises:
        ConfigError: if the text is anything else.
    """
    if not text.strip():
        return {}
    with suppress(ValueError, RecursionError):
        options = json.loads(text)
        if isinstance(options, dict):
            return options
    example = '{"enable_thinking": false}'
    raise ConfigError(f"template_options must be a JSON object, such as {example}, not {text!r:.80}.")


def merge_template_options(pairs: Iterable[tuple[str, Any]], enable_thinking: bool | None = None) -> dict[str, Any]:
    """All template options in one dictionary; `enable_thinking` is a shorthand for the option of that name.

    Raises:
        ConfigError: if one is given twice.
    """
    options: dict[str, Any] = {}
    for name, value in (*pairs, *([] if enable_thinking is None else [(_THINKING, enable_thinking)])):
        if name in options:
            raise ConfigError(f"the template option {name} is given twice: leave one out.")
        options[name] = value
    return options


def answer(
    generator: Generator,
    messages: Sequence[Mapping[str, str]],
    options: SamplingOptions | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Generation:
    """The next answer of the assistant, as a `Generation`.

    If conversation and answer together exceed the context, the oldest turns are dropped until they fit, or until half
    the context is free. The system prompt and the last turn are always kept. If the answer still grows beyond the
    context, the tokens before the first user message stay in the window.

    Args:
        template_options: as the `options` of `chat_tokens`.

    Raises:
        ChatError: if the model has no chat template, or that does not take these messages or options.
    """
    options = options or SamplingOptions()
    # In this template a turn ends with text, not with a token.
    if select_template(generator.tokenizer, template_options) == CHAT_TEMPLATE:
        options = dataclasses.replace(options, stop=(*options.stop, NEXT_TURN))

    conversation = _Conversation(generator.tokenizer, messages, template_options or {})
    context = generator.model.config.context_length
    if len(tokens := conversation.tokens()) + options.max_tokens <= context:
        return generator.generate(tokens, options)
    start = conversation.start_within(context - min(options.max_tokens, context // 2))
    if start:
        logger.warning(
            "the context of %s tokens has no room for the whole conversation: %s messages after the system prompt are "
            "left out.",
            f"{context:,}",
            f"{start:,}",
        )
    return generator.generate(conversation.tokens(start), options, pinned=conversation.pinned(start))


class _Conversation:
    """A conversation whose oldest turns can be dropped. A turn is a user message and what follows up to the next."""

    def __init__(
        self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], template_options: Mapping[str, Any]
    ) -> None:
        self._tokenizer, self._options = tokenizer, template_options
        count = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
        self._system, self._rest = list(messages[:count]), list(messages[count:])
        self._tokens: dict[int, list[int]] = {}

    def tokens(self, start: int = 0) -> list[int]:
        """Token ids of the prompt without the first `start` messages after the system prompt."""
        if start not in self._tokens:
            self._tokens[start] = self._tokens_of(self._rest[start:])
        return self._tokens[start]

    def start_within(self, limit: int) -> int:
        """The earliest turn from which the prompt has at most `limit` tokens; the last turn if none is short enough."""
        turns = [place for place, message in enumerate(self._rest) if place and message.get("role") == "user"]
        starts = [0, *turns]
        return starts[bisect.bisect_left(starts[:-1], True, key=lambda start: len(self.tokens(start)) <= limit)]

    def pinned(self, start: int) -> int:
        """The number of tokens before the content of the first user message, such as those of the system prompt."""
        said = str(self._rest[start].get("content")) if self._rest else ""
        other = "Z" if said.lstrip().startswith("A") else "A"
        pairs = zip(self.tokens(start), self._tokens_of([{"role": "user", "content": other}]), strict=False)
        return next((place for place, (one, two) in enumerate(pairs) if one != two), 0)

    def _tokens_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return chat_tokens(self._tokenizer, [*self._system, *messages], self._options)
