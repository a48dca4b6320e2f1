"""The retry policy of all network requests of this package, on `tenacity`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from transformer.credentials import redact

logger = logging.getLogger("transformer")
WAITS = [2.0, 10.0, 30.0]  # seconds before the second, the third and the last attempt
_LONGEST_WAIT = 60.0  # that a server may ask for
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")


def with_retries(
    request: Callable[[], T],
    retry_delay: Callable[[BaseException], float | None],
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """The result of `request`. A failed attempt is repeated after each of `WAITS`, and logged.

    Args:
        request: has to be safe to repeat.
        retry_delay: for the exception of an attempt, the seconds that the server asks to wait (0: it does not ask);
            None: the exception is final.
        progress: for example the number of bytes received. After an attempt with progress, the waits start again.

    Raises:
        Exception: that of the last attempt.
    """
    failures, reached = 0, progress()

    def count(state: RetryCallState) -> None:
        nonlocal failures, reached
        now = progress()
        failures, reached = (1 if now > reached else failures + 1), now

    def wait(state: RetryCallState) -> float:
        return max(WAITS[failures - 1], retry_delay(_error(state)) or 0.0) if failures <= len(WAITS) else 0.0

    def announce(state: RetryCallState) -> None:
        logger.info("trying again in %.0f s: %s", state.upcoming_sleep, redact(str(_error(state))))

    return Retrying(
        retry=retry_if_exception(lambda error: retry_delay(error) is not None),
        after=count,
        wait=wait,
        stop=lambda state: failures > len(WAITS),
        before_sleep=announce,
        sleep=time.sleep,
        reraise=True,
    )(request)


def delay_of_response(status: int, retry_after: str | None) -> float | None:
    """The seconds that a response asks to wait (0: it does not ask); None: its status is final.

    Args:
        retry_after: the header of that name. Dates are ignored.
    """
    if status not in _TRANSIENT:
        return None
    return min(float(retry_after), _LONGEST_WAIT) if retry_after and retry_after.isdigit() else 0.0


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None  # an attempt without one is not repeated
    return error
