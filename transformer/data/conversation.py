"""Conversations as plain text, in the same format for training and for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformer.errors import CorpusError

Parts = tuple[tuple[str, bool], ...]  # consecutive texts, each with its loss mask: True where tokens are targets
_ROLES = ("system", "user", "assistant")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "developer": "system"}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
_TOOL_CALLS = ("tool_calls", "function_call")
_WITHOUT_TOOLS = "Leave such conversations out, or write what was called and what came back as text into the content."
# The format of `conversation` as a chat template, which is saved with a model trained on conversations.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}"
)
NEXT_TURN = "\nUser:"  # what follows an answer


def conversation(messages: Sequence[Any] | None) -> Parts:
    """A conversation as the parts of a text, "User: …\\nAssistant: …"; targets are the messages of the assistant only.

    The space before an answer is a target too: it belongs to the first token, since a prompt ends with "Assistant:".

    Args:
        messages: {"role": "system", "user" or "assistant", "content": text} each. Also accepted: a content of several
            parts, {"type": "text", "text": text} each; {"from": "system", "human" or "gpt", "value": text}; and the
            role "developer" for "system".

    Raises:
        CorpusError: if a message has another role or no text, or calls a tool.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise CorpusError(f"expected a list of messages, found {messages!r:.80}.")
    parts: list[tuple[str, bool]] = []
    prompt = ""  # since the last answer
    for message in messages:
        role, content = _role_and_content(message)
        prompt += ("\n" if parts or prompt else "") + f"{role.capitalize()}:"
        if role == "assistant":
            parts += [(prompt, False), (f" {content}", True)]
            prompt = ""
        else:
            prompt += f" {content}"
    return (*parts, (prompt, False)) if prompt else tuple(parts)


def _role_and_content(message: Any) -> tuple[str, str]:
    """The role, one of _ROLES, and the text of a message.

    Raises:
        CorpusError: if it has another role or no text.
    """
    fields = message if isinstance(message, dict) else {}
    name = fields.get("role") if fields.get("role") is not None else fields.get("from")
    role = _OTHER_NAMES.get(name, name) if isinstance(name, str) else name
    if any(fields.get(name) for name in _TOOL_CALLS):
        raise CorpusError(f"a message of the {role} calls a tool, which is not supported. {_WITHOUT_TOOLS}")
    if role not in _ROLES:
        tools = f" {_WITHOUT_TOOLS}" if role in _TOOL_ROLES else ""
        raise CorpusError(f"the role of a message is {name!r:.80}: expected {', '.join(_ROLES)}.{tools}")
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
