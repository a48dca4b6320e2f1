"""Stop sequences in streamed text."""

import json
from collections.abc import Sequence
from contextlib import suppress


def stops_of(text: str) -> tuple[str, ...]:
    """Parse stop sequences from one line: a JSON list of strings, or strings separated by commas.

    In the second form \\n stands for a newline. Stop sequences with commas or backslashes need the first form.
    """
    with suppress(ValueError, RecursionError):
        listed = json.loads(text)
        if isinstance(listed, list) and listed and all(isinstance(stop, str) for stop in listed):
            return tuple(listed)
    return tuple(stop.replace("\\n", "\n") for stop in text.split(",") if stop)


class StopBuffer:
    """Passes streamed text on, up to the first stop sequence, which may be split across pieces.

    Text that may be the start of a stop sequence is buffered until that is decided.

    Attributes:
        longest: length of the longest stop sequence in characters; 0 if there is none.
        found: whether a stop sequence was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.longest = max(map(len, self._stops), default=0)
        self.found = False

    def add(self, piece: str) -> str:
        """Add a piece; returns the text that is certain to be before any stop sequence."""
        self._held += piece
        ends = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if ends:
            self.found = True
            return self._release(min(ends))
        return self._release(len(self._held) - self._possible_beginning())

    def would_end(self, text: str) -> bool:
        """Whether a stop sequence would be complete if `text` were added."""
        return bool(text) and (self._held + text).endswith(self._stops)

    def finish(self) -> str:
        """The buffered text, at the end of the stream."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        out, self._held = self._held[:length], self._held[length:]
        return out

    def _possible_beginning(self) -> int:
        """The length of the longest suffix of the buffer that is a prefix of a stop sequence."""
        longest = min(len(self._held), self.longest - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
