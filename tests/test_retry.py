"""One retry policy: how often a request is repeated, after how long, and what the log says of it."""

import logging
from collections.abc import Callable, Iterator

import pytest

from transformer.hub import retry
from transformer.hub.retry import delay_of_response, with_retries


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, without waiting."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def failing(*errors: Exception) -> Callable[[], str]:
    left: Iterator[Exception] = iter(errors)

    def request() -> str:
        for error in left:
            raise error
        return "here"

    return request


def test_a_request_is_repeated_after_each_wait_and_no_more(waits: list[float]) -> None:
    assert with_retries(failing(*[OSError("cut")] * len(retry.WAITS)), lambda error: 0.0) == "here"
    assert waits == retry.WAITS
    last = OSError("the last one")
    with pytest.raises(OSError) as raised:
        with_retries(failing(*[OSError("cut")] * len(retry.WAITS), last), lambda error: 0.0)
    assert raised.value is last and waits == 2 * retry.WAITS


@pytest.mark.parametrize("error", [ValueError("a wrong token"), KeyboardInterrupt()])
def test_what_cannot_pass_is_not_repeated(error: Exception, waits: list[float]) -> None:
    with pytest.raises(type(error)):
        with_retries(failing(error), lambda error: 0.0 if isinstance(error, OSError) else None)
    assert not waits


def test_a_longer_wait_that_the_server_asks_for_is_kept(waits: list[float]) -> None:
    assert with_retries(failing(OSError("busy"), OSError("busy")), lambda error: 7.0) == "here"
    assert waits == [7.0, max(7.0, retry.WAITS[1])]


def test_progress_starts_the_waits_again(waits: list[float]) -> None:
    arrived = iter([0, 10, 10, 20, 20])
    assert with_retries(failing(*[OSError("cut")] * 4), lambda error: 0.0, lambda: next(arrived)) == "here"
    first, second = retry.WAITS[:2]
    assert waits == [first, second, first, second]


def test_each_wait_is_announced_without_secrets(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "transformer"):
        with_retries(failing(OSError("https://me:secret-word@host/x was cut")), lambda error: 0.0)
    (line,) = caplog.messages
    assert line.startswith(f"trying again in {retry.WAITS[0]:.0f} s: ") and "host/x was cut" in line
    assert "secret-word" not in line


@pytest.mark.parametrize(
    ("status", "header", "wait"),
    [
        (503, None, 0.0),
        (429, "5", 5.0),
        (429, "100000", 60.0),
        (503, "Wed, 21 Oct", 0.0),
        (401, "5", None),
        (404, None, None),
    ],
)
def test_the_wait_of_a_response(status: int, header: str | None, wait: float | None) -> None:
    assert delay_of_response(status, header) == wait
