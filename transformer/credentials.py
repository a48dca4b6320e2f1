"""Tokens and passwords: validation, and redaction from messages.

`redact` is applied to the message of each `TransformerError` and, after `guard_output`, to each log record and to the
traceback of an uncaught exception.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

MASK = "***"
_MIN_LENGTH = 6  # characters; masking a shorter secret would mask ordinary words
_SECRET_VARIABLES = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$")
_SECRET_PARAMETERS = re.compile(r"auth|credential|key|pass|secret|sig|token", re.IGNORECASE)
_INVALID_IN_TOKEN = re.compile(r"[^A-Za-z0-9._~+/=-]")  # RFC 6750, section 2.1
_HUB_TOKEN = re.compile(r"\b(?:hf|api_org)_(?:jwt_|oauth_)?[A-Za-z0-9][A-Za-z0-9.-]{14,}[A-Za-z0-9]")
_HEADER = re.compile(r"(?<=Bearer )[^\s'\",]{6,}|(?i:(?<=authorization: )|(?<=authorization': '))[^'\r\n]+")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)

known_secrets: set[str] = set()  # of this process, besides those in its environment


def keep_secret(secret: str) -> None:
    """Let `redact` mask this text from now on."""
    known_secrets.add(secret)


def redact(text: str) -> str:
    """The text with secrets of this process, Hub tokens, and credentials in URLs masked.

    In a URL the user, the password and the values of the query are masked.
    """
    secrets = known_secrets | {value for name, value in os.environ.items() if _SECRET_VARIABLES.search(name)}
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= _MIN_LENGTH}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return _HEADER.sub(MASK, _HUB_TOKEN.sub(MASK, _URL.sub(_without_credentials, text)))


def clean_token(token: str | None, source: str = "the Hub token") -> str | None:
    """A token without white space around it; None if it is empty.

    Args:
        source: of the token, in words, for the message.

    Raises:
        ValueError: if it has a character that tokens cannot have. The message does not show the token.
    """
    if token is None:
        return None
    keep_secret(token)
    token = token.strip()
    if odd := _INVALID_IN_TOKEN.search(token):
        raise ValueError(
            f"{source} has the character U+{ord(odd[0]):04X} at position {odd.start() + 1} of {len(token)}, which no "
            "token has: copy it again from https://huggingface.co/settings/tokens."
        )
    return token or None


def split_credentials(url: str) -> tuple[str, str | None]:
    """A URL without user and password, and the value of the Authorization header for them; None: it has none."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    for name, value in parse_qsl(parts.query):
        if _SECRET_PARAMETERS.search(name):
            keep_secret(value)
    if not at:
        return url, None
    user, _, password = login.partition(":")
    encoded = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    for secret in (login, password, unquote(password), encoded):
        keep_secret(secret)
    return urlunsplit(parts._replace(netloc=host)), f"Basic {encoded}"


def scrub(error: BaseException) -> BaseException:
    """The error without secrets in its message and in those of its causes, or another error with the same message.

    For `raise ... from scrub(error)`, since a traceback shows all causes.
    """
    clean = True
    for link in _chain(error):
        if redact(f"{link} {link.args}") != f"{link} {link.args}":
            link.args = tuple(_redact_value(value) for value in link.args)
            clean &= redact(str(link)) == str(link)
    return error if clean else RuntimeError(redact(f"{type(error).__name__}: {error}"))


def guard_output() -> None:
    """Redact the messages of all loggers of this process, and the traceback of uncaught exceptions."""
    make_record, show = logging.getLogRecordFactory(), sys.excepthook
    if getattr(make_record, "redacts", False):
        return

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = make_record(*arguments, **named)
        try:
            message = made.getMessage()
        except (TypeError, ValueError):  # a wrong format, which logging reports
            return made
        if (redacted := redact(message)) != message:
            made.msg, made.args = redacted, ()
        if made.exc_info and made.exc_info[1]:
            shown = "".join(traceback.format_exception(made.exc_info[1]))
            if (redacted := redact(shown)) != shown:
                made.exc_text, made.exc_info = redacted.rstrip("\n"), None
        return made

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        shown = "".join(traceback.format_exception(kind, error, trace))
        if (redacted := redact(shown)) == shown:
            show(kind, error, trace)
        else:
            sys.stderr.write(redacted)

    record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    sys.excepthook = hook


def _forms(secret: str) -> Iterator[str]:
    """The forms of a secret in messages: as it is, escaped, or quoted; and its parts between white space."""
    for text in (secret, secret.strip(), *re.split(r"[^!-~]+", secret)):
        yield text
        yield repr(text)[1:-1]
        yield ascii(text)[1:-1]
        yield repr(text.encode("utf-8", "backslashreplace"))[2:-1]
        yield json.dumps(text)[1:-1]
        yield quote(text, safe="", errors="replace")
        yield quote_plus(text, errors="replace")


def _without_credentials(found: re.Match[str]) -> str:
    url = found[0].rstrip(".,:;!)`")
    rest = found[0][len(url) :]
    address, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr]
    address = re.sub(r"(?<=://)[^/]*@", "", address)
    parts = re.split(r"([&#])", query)
    query = "".join(part if part in ("", "&", "#") else _mask_value(part) for part in parts)
    return f"{address}{mark}{query}{rest}"


def _mask_value(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}={MASK}" if equals else MASK


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    shown = repr(value)
    return value if redact(shown) == shown else redact(shown)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is not None and not any(link is known for known in found):
            found.append(link)
            waiting += [link.__cause__, link.__context__]
    return found
