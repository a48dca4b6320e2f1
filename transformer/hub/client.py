"""Requests to the Hub that try again where it may help, and that fail with one sentence.

Import this late: a model that is here already needs no network client.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import httpx2  # what huggingface_hub speaks HTTP with, and whose errors it lets through
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from transformer.credentials import clean_token, redact, scrub
from transformer.errors import TransformerError
from transformer.hub.retry import wait_of_response, with_retries

_LOGIN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# RuntimeError is how the client says that the Hub refused an upload.
_FAILURES = (httpx2.HTTPError, OSError, RuntimeError)
_FINAL = (
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    PermissionError,
    httpx2.LocalProtocolError,
    httpx2.UnsupportedProtocol,
)

T = TypeVar("T")


class DamagedFile(OSError):
    """A downloaded or cached file does not have the checksum that the Hub gives for it."""


def ask(request: Callable[[], T], failure: str, kind: type[TransformerError], token: str | None = None) -> T:
    """What `request` returns; it must be one that may be repeated.

    Args:
        failure: what did not work then, in words: the beginning of the sentence.
        token: what the request is made with, if it is not the client's own; it has been checked.

    Raises:
        kind: if the token cannot be one, the Hub says no, or does not answer however often it is asked.
    """

    def attempt() -> T:
        if token is None:
            check_login()
        return request()

    try:
        return with_retries(attempt, _wait_asked)
    except TransformerError:
        raise
    except Exception as error:  # the client lets through those of the libraries that it uses
        raise kind(f"{failure}: {_cause(error)}") from scrub(error)


def check_login() -> None:
    """Check the token that the Hub's client would send by itself: of the environment, or of `hf auth login`.

    Raises:
        ValueError: as `clean_token`.
    """
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return
    for name in _LOGIN_VARIABLES:
        if clean_token(os.environ.get(name), name) is not None:
            return
    clean_token(get_token(), "the token of `hf auth login`")


def _wait_asked(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait, 0 if it does not; None if another attempt makes no sense."""
    reason = error.__cause__
    if isinstance(error, DamagedFile) and isinstance(reason, Exception):  # and could not be fetched again
        return None if isinstance(reason, httpx2.ConnectError) else _wait_asked(reason)
    if isinstance(error, _FINAL) or not isinstance(error, _FAILURES):
        return None
    if isinstance(error, LocalEntryNotFoundError):  # nothing in the cache, and for this reason not from the Hub either
        unreachable = isinstance(reason, (OfflineModeIsEnabled, httpx2.ConnectError))
        return None if unreachable or not isinstance(reason, Exception) else _wait_asked(reason)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return wait_of_response(error.response.status_code, error.response.headers.get("retry-after"))
    return 0.0


def _cause(error: Exception) -> str:
    if isinstance(error, DamagedFile) and isinstance(error.__cause__, Exception):
        unreachable = isinstance(error.__cause__, (OfflineModeIsEnabled, httpx2.ConnectError))
        why = "the Hub cannot be reached." if unreachable else _cause(error.__cause__)
        return f"{error}, and cannot be fetched again: {why}"
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in; set HF_TOKEN or run `hf auth login`."
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, HfHubHTTPError):  # the Hub was there, and said no
            return _cause(error.__cause__)
        return "it is not in the Hub's cache here, and the Hub cannot be reached."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    hint = " Set HF_TOKEN or run `hf auth login`, with a token that may do this." if status in (401, 403) else ""
    # Before it is cut into lines: a secret that a line end cuts in two would not be recognised.
    return (redact(str(error)).strip() or type(error).__name__).splitlines()[0] + hint
