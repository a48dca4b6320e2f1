"""Stopping a run by a signal, after it has saved its state."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from transformer.errors import TransformerError

# Windows has no SIGHUP, which a terminal sends that is closed.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Interrupted(TransformerError):
    """The run was asked to stop and has saved its state.

    Args:
        step: the last step of the run.
        signal: the number of the signal; the exit status of a command is 128 more.
    """

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped after step {step:,}, and saved: the same command resumes the run.")
        self.signal = signal


class Interrupt:
    """A context in which SIGTERM, SIGHUP and Ctrl-C set `signal` only, so that a step can be finished and saved.

    A second Ctrl-C raises KeyboardInterrupt. SIGHUP stays ignored where it is, as under `nohup`.

    Args:
        asked: an event that has the effect of SIGTERM, for a run in a thread, which gets no signals.
    """

    def __init__(self, asked: threading.Event | None = None) -> None:
        self._asked = asked
        self._signal = 0
        self._before: dict[int, object] = {}

    @property
    def signal(self) -> int:
        """The number of the first signal that was received; 0: none."""
        if not self._signal and self._asked is not None and self._asked.is_set():
            return signal.SIGTERM
        return self._signal

    def __enter__(self) -> Interrupt:
        for number in _SIGNALS:
            if number not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # only the main thread may set handlers; in a server, the server does
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number
