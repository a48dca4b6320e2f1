"""Conversations as plain text, the same way to learn from and to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformer.errors import CorpusError

Parts = tuple[tuple[str, bool], ...]  # texts that follow one another, each with whether it is learned
_ROLES = ("system", "user", "assistant")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "developer": "system"}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
_TOOL_CALLS = ("tool_calls", "function_call")
_WITHOUT_TOOLS = "Leave such conversations out, or write what was called and what came back as text into the content."
# What `conversation_prompt` writes, as a chat template: a model that learned from conversations carries it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}"
)
NEXT_TURN = "\nUser:"  # what follows an answer


def conversation(messages: Sequence[Any] | None) -> Parts:
    """A conversation as the parts of a text, "User: …\\nAssistant: …"; only what the assistant says is learned.

    An answer is learned with the space before it: that space is part of its first token, and a prompt for an answer
    ends with "Assistant:".

    Args:
        messages: {"role": "system", "user" or "assistant", "content": text} each. Also understood: a content in parts,
            {"type": "text", "text": text} each, which are joined; {"from": "system", "human" or "gpt", "value": text};
            the role "developer", which is the system's.

    Raises:
        CorpusError: if a message has another role or no text, or calls a tool.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise CorpusError(f"expected a list of messages, found {messages!r:.80}.")
    parts: list[tuple[str, bool]] = []
    read = ""  # what is read, not learned, since the last answer
    for message in messages:
        role, content = _role_and_content(message)
        read += ("\n" if parts or read else "") + f"{role.capitalize()}:"
        if role == "assistant":
            parts += [(read, False), (f" {content}", True)]
            read = ""
        else:
            read += f" {content}"
    return (*parts, (read, False)) if read else tuple(parts)


def _role_and_content(message: Any) -> tuple[str, str]:
    """The role, one of _ROLES, and the text of a message.

    Raises:
        CorpusError: if there are none.
    """
    fields = message if isinstance(message, dict) else {}
    said = fields.get("role") if fields.get("role") is not None else fields.get("from")
    role = _OTHER_NAMES.get(said, said) if isinstance(said, str) else said
    if any(fields.get(name) for name in _TOOL_CALLS):
        raise CorpusError(f"a message of the {role} calls a tool, which is not learned here. {_WITHOUT_TOOLS}")
    if role not in _ROLES:
        tools = f" {_WITHOUT_TOOLS}" if role in _TOOL_ROLES else ""
        raise CorpusError(f"the role of a message is {said!r:.80}: expected {', '.join(_ROLES)}.{tools}")
    content = fields.get("content") if fields.get("content") is not None else fields.get("value")
    if isinstance(content, list | tuple):
        content = "".join(map(_text_of_part, content))
    if not isinstance(content, str) or not content.strip():
        raise CorpusError(
            f"the content of a message of the {role} is {content!r:.80}: expected text. Leave the conversation out."
        )
    return role, content.strip()


def _text_of_part(part: Any) -> str:
    """The text of one part of a message's content.

    Raises:
        CorpusError: if it is an image or anything else.
    """
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else part
        raise CorpusError(
            f"a part of a message's content is of the type {kind!r:.80}: expected text. Leave the conversation out."
        )
    text: str = part["text"]
    return text


def conversation_prompt(messages: Sequence[Any]) -> str:
    """The text after which a model that learned from conversations gives the assistant's next answer.

    Raises:
        CorpusError: as `conversation`.
    """
    return "".join(text for text, _ in conversation(messages)) + "\nAssistant:"
