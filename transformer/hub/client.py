"""Requests to the Hub, repeated if that may help, whose failure is described in one sentence.

To be imported where it is used: a local model needs no network client.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import httpx2  # the HTTP client of huggingface_hub, which does not catch its errors
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
from transformer.hub.retry import delay_of_response, with_retries

_LOGIN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# The client raises RuntimeError if the Hub refused an upload.
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
    """The result of `request`, which has to be safe to repeat.

    Args:
        failure: the beginning of the error message.
        token: that of the request, already checked; None: the client's own.

    Raises:
        kind: if the token is malformed, or the Hub refuses the request or does not answer.
    """

    def attempt() -> T:
        if token is None:
            check_login()
        return request()

    try:
        return with_retries(attempt, _retry_delay)
    except TransformerError:
        raise
    except Exception as error:  # also those of the libraries that the client uses
        raise kind(f"{failure}: {_cause(error)}") from scrub(error)


def check_login() -> None:
    """Check the token that the Hub's client sends by default, from the environment or from `hf auth login`.

    Raises:
        ValueError: as `clean_token`.
    """
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return
    for name in _LOGIN_VARIABLES:
        if clean_token(os.environ.get(name), name) is not None:
            return
    clean_token(get_token(), "the token of `hf auth login`")


def _retry_delay(error: BaseException) -> float | None:
    """As `retry_delay` of `with_retries`."""
    reason = error.__cause__
    if isinstance(error, DamagedFile) and isinstance(reason, Exception):  # and could not be fetched again
        return None if isinstance(reason, httpx2.ConnectError) else _retry_delay(reason)
    if isinstance(error, _FINAL) or not isinstance(error, _FAILURES):
        return None
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache; the cause is why it was not downloaded
        unreachable = isinstance(reason, (OfflineModeIsEnabled, httpx2.ConnectError))
        return None if unreachable or not isinstance(reason, Exception) else _retry_delay(reason)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return delay_of_response(error.response.status_code, error.response.headers.get("retry-after"))
    return 0.0


def _cause(error: Exception) -> str:
    if isinstance(error, DamagedFile) and isinstance(error.__cause__, Exception):
        unreachable = isinstance(error.__cause__, (OfflineModeIsEnabled, httpx2.ConnectError))
        why = "the Hub cannot be reached." if unreachable else _cause(error.__cause__)
        return f"{error}, and cannot be fetched again: {why}"
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in; set HF_TOKEN or run `hf auth login`."
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, HfHubHTTPError):  # the Hub refused the request
            return _cause(error.__cause__)
        return "it is not in the Hub's cache here, and the Hub cannot be reached."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    hint = " Set HF_TOKEN or run `hf auth login`, with a token that may do this." if status in (401, 403) else ""
    # Redacted before it is split into lines: half of a secret would not be recognised.
    return (redact(str(error)).strip() or type(error).__name__).splitlines()[0] + hint
