"""Stop sequences in a text that arrives in pieces."""

import json
from collections.abc import Sequence
from contextlib import suppress


def stops_of(text: str) -> tuple[str, ...]:
    """The stop sequences that a person typed in one line: a JSON list of strings, or else separated by commas.

    Between commas, a backslash followed by n is a line end; what has such signs itself is written as JSON.
    """
    with suppress(ValueError, RecursionError):
        listed = json.loads(text)
        if isinstance(listed, list) and listed and all(isinstance(stop, str) for stop in listed):
            return tuple(listed)
    return tuple(stop.replace("\\n", "\n") for stop in text.split(",") if stop)


class StopBuffer:
    """Passes text on, except for the first stop sequence and all after it, wherever the pieces are cut.

    Text that may be the beginning of a stop sequence is held back until that is decided.

    Attributes:
        longest: characters of the longest stop sequence; 0 if there is none.
        found: whether one stood in the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.longest = max(map(len, self._stops), default=0)
        self.found = False

    def add(self, piece: str) -> str:
        """What is certain to stand before any stop sequence."""
        self._held += piece
        ends = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if ends:
            self.found = True
            return self._release(min(ends))
        return self._release(len(self._held) - self._possible_beginning())

    def would_end(self, text: str) -> bool:
        """Whether a stop sequence would be complete with the end of `text`, were that added."""
        return bool(text) and (self._held + text).endswith(self._stops)

    def finish(self) -> str:
        """What was held back: no stop sequence came of it."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        out, self._held = self._held[:length], self._held[length:]
        return out

    def _possible_beginning(self) -> int:
        """The length of the longest end of the held text with which a stop sequence begins."""
        longest = min(len(self._held), self.longest - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
