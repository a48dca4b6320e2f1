"""Conversations as plain text, the same way to learn from and to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformer.errors import CorpusError

Parts = tuple[tuple[str, bool], ...]  # texts that follow one another, each with whether it is learned
_ROLES = ("system", "user", "assistant")
# What `conversation_prompt` writes, as a chat template: a model that learned from conversations carries it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}"
)
NEXT_TURN = "\nUser:"  # what follows an answer


def conversation(messages: Sequence[Any]) -> Parts:
    """A conversation as the parts of a text, "User: …\\nAssistant: …"; only what the assistant says is learned.

    An answer is learned with the space before it: that space is part of its first token, and a prompt for an answer
    ends with "Assistant:".

    Args:
        messages: {"role": "system", "user" or "assistant", "content": text} each.

    Raises:
        CorpusError: if a message has another role or no text.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise CorpusError(f"expected a list of messages, found {messages!r}.")
    parts: list[tuple[str, bool]] = []
    read = ""  # what is read, not learned, since the last answer
    for message in messages:
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if role not in _ROLES:
            raise CorpusError(f"the role of a message is {role!r}: expected {', '.join(_ROLES)}.")
        if not isinstance(content, str) or not content.strip():
            raise CorpusError(f"the content of a message of the {role} is {content!r}: expected text.")
        read += ("\n" if parts or read else "") + f"{role.capitalize()}:"
        if role == "assistant":
            parts += [(read, False), (f" {content.strip()}", True)]
            read = ""
        else:
            read += f" {content.strip()}"
    return (*parts, (read, False)) if read else tuple(parts)


def conversation_prompt(messages: Sequence[Any]) -> str:
    """The text after which a model that learned from conversations gives the assistant's next answer.

    Raises:
        CorpusError: as `conversation`.
    """
    return "".join(text for text, _ in conversation(messages)) + "\nAssistant:"
