"""Being asked to stop."""

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
        signal: by which it was asked; a shell adds 128 to the number.
    """

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped after step {step:,}, and saved: the same command goes on from there.")
        self.signal = signal


class Interrupt:
    """Within it SIGTERM, SIGHUP and Ctrl-C are only noted, so that a step can be finished and saved.

    A second Ctrl-C stops at once: whoever presses it twice does not want to wait. SIGHUP is left alone where it
    is ignored, as under `nohup`.

    Args:
        asked: when this is set, the run is asked to stop as by SIGTERM: for threads, which get no signals.
    """

    def __init__(self, asked: threading.Event | None = None) -> None:
        self._asked = asked
        self._signal = 0
        self._before: dict[int, object] = {}

    @property
    def signal(self) -> int:
        """The number of the first signal; 0: none came."""
        if not self._signal and self._asked is not None and self._asked.is_set():
            return signal.SIGTERM
        return self._signal

    def __enter__(self) -> Interrupt:
        for number in _SIGNALS:
            if number not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # only the main thread may; elsewhere, as under a server, its owner handles signals
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number
