"""Conversations as text, by the chat template of a model.

A template is an untrusted program. It runs in Jinja's sandbox, in a separate process with limits of time, memory and
output, which the sandbox does not have.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer.data.template_files import DEFAULT
from transformer.data.tokenizer import Tokenizer
from transformer.errors import ChatError

TEMPLATE_NAME = "chat_template"  # the option that names one of several templates
_RENDERER = Path(__file__).with_name("chat_template_worker.py")
_SECONDS = 30.0  # wall-clock time, on a busy machine; the limit of processor time is lower
_SET_HERE = ("messages", "add_generation_prompt")
_LISTS = ("tools", "documents")
_WITH_TOOLS = "tool_use"  # the template that is used if tools are given, as in transformers


def chat_tokens(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any] | None = None
) -> list[int]:
    """The tokens of the prompt for the assistant's next answer to `messages`.

    They are those of `AutoTokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)`.

    Args:
        messages: {"role": ..., "content": ...} each.
        options: variables of the template, such as `enable_thinking` for Qwen3. `chat_template` is the name of the
            template to use, if the model has several.

    Raises:
        ChatError: if the model has no template, or none of this name, or as `render`.
    """
    options = dict(options or {})
    template = select_template(tokenizer, options)
    if not messages:
        raise ChatError("there is no message to answer.")
    options.pop(TEMPLATE_NAME, None)
    return tokenizer.encode_chat(render(template, messages, tokenizer.special_tokens, options))


def select_template(tokenizer: Tokenizer, options: Mapping[str, Any] | None = None) -> str:
    """The template named by `chat_template` in `options`, or else the one named "default".

    Raises:
        ChatError: if there is none.
    """
    templates, options = tokenizer.chat_templates, options or {}
    if not templates:
        raise ChatError("this model continues texts and has no chat template: it takes a prompt and no system prompt.")
    tools = options.get("tools") is not None and _WITH_TOOLS in templates
    name = options.get(TEMPLATE_NAME, _WITH_TOOLS if tools else DEFAULT)
    if isinstance(name, str) and name in templates:
        return templates[name]
    names = ", ".join(sorted(templates))
    if TEMPLATE_NAME in options:
        raise ChatError(f"the model has no chat template called {name!r:.80}: it has {names}.")
    raise ChatError(
        f"this model has the chat templates {names}, and none called default. Name the one to use by the template "
        f"option {TEMPLATE_NAME}, such as {TEMPLATE_NAME}={min(templates)}."
    )


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, str],
    options: Mapping[str, Any] | None = None,
) -> str:
    """The text of the prompt for the assistant's next answer.

    Args:
        template: in Jinja, as `chat_template` in a `tokenizer_config.json`.
        messages: {"role": "system", "user" or "assistant", "content": text} each.
        special_tokens: the variables `bos_token`, `eos_token` and so on of the template.
        options: other variables of the template, or other values for these, as JSON.

    Raises:
        ChatError: if the template is invalid, rejects these messages, exceeds a limit of time or memory, or does not
            use a variable of `options`.
    """
    options = options or {}
    _check_options(options)
    task = {"template": template, "messages": list(messages), "special_tokens": dict(special_tokens)}
    command = [sys.executable, "-I", str(_RENDERER)]
    try:
        given = json.dumps({**task, "options": dict(options)}).encode()
        done = subprocess.run(command, input=given, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ChatError(f"the model's chat template did not end within {_SECONDS:.0f} seconds.") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ChatError("the model's chat template exceeds the limit of memory or time.") from None
    if "unread" in answer:
        known = {*special_tokens, *_SET_HERE}
        others = ", ".join(name for name in answer["variables"] if name not in known) or "none"
        raise ChatError(
            f"the model's chat template does not read {', '.join(answer['unread'])}: leave such template options out. "
            f"What it reads beside the messages and special tokens: {others:.300}."
        )
    if "error" in answer:
        raise ChatError(f"the model's chat template says: {answer['error']}")
    text: str = answer["text"]
    return text


def _check_options(options: Mapping[str, Any]) -> None:
    for name in _SET_HERE:
        if name in options:
            raise ChatError(f"the template option {name} is set by the program: leave it out.")
    for name in _LISTS:
        value = options.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
            raise ChatError(f"the template option {name} must be a JSON list of objects, not {value!r:.80}.")
