"""Being asked to stop."""

from __future__ import annotations

import signal
from types import FrameType

from transformer.errors import TransformerError


class Interrupted(TransformerError):
    """The run was asked to stop and has saved its state.

    Args:
        signal: by which it was asked; a shell adds 128 to the number.
    """

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped after step {step:,}, and saved: the same command goes on from there.")
        self.signal = signal


class Interrupt:
    """Within it SIGTERM and Ctrl-C are only noted, so that a step can be finished and saved.

    A second Ctrl-C stops at once: whoever presses it twice does not want to wait. signal: the number of the first.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # only the main thread may; elsewhere, as under a server, its owner handles signals
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
