"""Conversations as the text that a model's own chat template makes of them.

A template is a small program of a stranger. It runs in Jinja's sandbox, in a process of its own whose time, memory and
output are bounded, because the sandbox bounds none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformer.errors import ChatError
from transformer.text.tokenizer import Tokenizer

_RENDERER = Path(__file__).with_name("chat_renderer.py")
_SECONDS = 30.0  # on a busy machine; its processor time is bounded more tightly


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The tokens after which a model gives the assistant's next answer to `messages`, by its own template.

    Raises:
        ChatError: if it has none, or as `render`.
    """
    if tokenizer.chat_template is None:
        raise ChatError("this model continues texts and has no chat template: it takes a prompt and no system prompt.")
    return tokenizer.encode_chat(render(tokenizer.chat_template, messages, tokenizer.special_tokens))


def render(template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
    """The prompt after which a model gives the assistant's next answer.

    Args:
        template: Jinja, as `chat_template` of a `tokenizer_config.json` has it.
        messages: {"role": "system", "user" or "assistant", "content": text} each.
        special_tokens: what the template knows as `bos_token`, `eos_token` and so on.

    Raises:
        ChatError: if the template refuses these messages, is wrong, or wants too much time or memory.
    """
    task = json.dumps({"template": template, "messages": list(messages), "special_tokens": dict(special_tokens)})
    command = [sys.executable, "-I", str(_RENDERER)]
    try:
        done = subprocess.run(command, input=task.encode(), capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ChatError(f"the model's chat template did not end within {_SECONDS:.0f} seconds.") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ChatError("the model's chat template wants more memory or time than it may have.") from None
    if "error" in answer:
        raise ChatError(f"the model's chat template says: {answer['error']}")
    text: str = answer["text"]
    return text
