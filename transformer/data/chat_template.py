"""Conversations as the text that a model's own chat template makes of them.

A template is a small untrusted program. It runs in Jinja's sandbox, in a process of its own whose time, memory and
output are bounded, because the sandbox bounds none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformer.data.tokenizer import Tokenizer
from transformer.errors import ChatError

_RENDERER = Path(__file__).with_name("chat_template_worker.py")
_SECONDS = 30.0  # on a busy machine; its processor time is bounded more tightly


def chat_tokens(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], enable_thinking: bool | None = None
) -> list[int]:
    """The tokens after which a model gives the assistant's next answer to `messages`, by its own template.

    Args:
        enable_thinking: what templates know by this name, such as Qwen3's; None: the template's own default.

    Raises:
        ChatError: if it has none, or one that does not know `enable_thinking` where that is given, or as `render`.
    """
    template = tokenizer.chat_template
    if template is None and (names := tokenizer.chat_template_names):
        raise ChatError(
            f"this model has the chat templates {', '.join(names)}, and none called default. Copy the one to use from "
            "its tokenizer_config.json into a file chat_template.jinja beside it."
        )
    if template is None:
        raise ChatError("this model continues texts and has no chat template: it takes a prompt and no system prompt.")
    if not messages:
        raise ChatError("there is no message to answer.")
    if enable_thinking is not None and "enable_thinking" not in template:
        raise ChatError("the model's chat template does not know enable_thinking: leave it out.")
    given = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return tokenizer.encode_chat(render(template, messages, tokenizer.special_tokens, given))


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str],
    given: Mapping[str, bool] | None = None,
) -> str:
    """The prompt after which a model gives the assistant's next answer.

    Args:
        template: Jinja, as `chat_template` of a `tokenizer_config.json` has it.
        messages: {"role": "system", "user" or "assistant", "content": text} each.
        special_tokens: what the template knows as `bos_token`, `eos_token` and so on.
        given: what else it knows.

    Raises:
        ChatError: if the template refuses these messages, is wrong, or wants too much time or memory.
    """
    known = {**special_tokens, **(given or {})}
    task = json.dumps({"template": template, "messages": list(messages), "special_tokens": known})
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
