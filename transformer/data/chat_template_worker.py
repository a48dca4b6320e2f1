"""The process that renders a chat template: its input is JSON on standard input, its output JSON on standard output.

It imports nothing from the package, so that it starts in a tenth of a second. Templates have the same environment as in
`transformers`: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_MEMORY = 200 * 2**20  # bytes, of which the interpreter needs thirty million
_CPU_SECONDS = 2
_MAX_CHARACTERS = 2**20


class Generation(jinja2.ext.Extension):
    """The tag {% generation %} … {% endgeneration %}, which marks targets of training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class UnreadOptions(Exception):
    """A template does not use variables that it is given. Arguments: their names, and the names that it uses."""


def render(
    template: str, messages: list[dict[str, str]], special_tokens: dict[str, str], options: dict[str, Any]
) -> str:
    """The text of the template, up to where the assistant's answer starts.

    Args:
        options: variables of the template, which override the other ones.

    Raises:
        UnreadOptions: if the template does not use one of `options`.
        jinja2.TemplateError: if the template is invalid or rejects the messages.
        ValueError: if its output is too long.
        Exception: whatever its expressions raise.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    if options:
        _expect_read(options, jinja2.meta.find_undeclared_variables(environment.parse(template)))
    pieces, length = [], 0
    given: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    for piece in environment.from_string(template).generate({**special_tokens, **given, **options}):
        pieces.append(piece)
        length += len(piece)
        if length > _MAX_CHARACTERS:
            raise ValueError(f"it writes more than {_MAX_CHARACTERS:,} characters")
    return "".join(pieces)


def _expect_read(options: dict[str, Any], variables: set[str]) -> None:
    unread = sorted(options.keys() - variables)
    if unread:
        raise UnreadOptions(unread, sorted(variables))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """json.dumps; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def main() -> None:
    with suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    try:
        answer: dict[str, Any] = {"text": render(**json.load(sys.stdin))}
    except UnreadOptions as error:
        unread, variables = error.args
        answer = {"unread": unread, "variables": variables}
    except MemoryError:
        answer = {"error": "it exceeds the limit of memory."}
    except Exception as error:
        answer = {"error": (str(error).strip() or type(error).__name__).splitlines()[0][:500]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
