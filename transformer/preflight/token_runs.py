"""Runs of tokens, found in a text by their hash.

Dimensions: N tokens
"""

from __future__ import annotations

import numpy as np

CHUNK = 2**22  # tokens hashed at once
_TABLE_BITS = 24
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: a multiplier that mixes well


def hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """(..., N - length + 1) uint64: a polynomial of each run of `length` tokens, a power of two.

    It is computed from that of runs half as long.
    """
    run = tokens.astype(np.uint64) + np.uint64(1)
    part, power = 1, _BASE
    with np.errstate(over="ignore"):
        while part < length:
            run = run[..., :-part] * power + run[..., part:]
            part, power = 2 * part, power * power
    return run


class HashSet:
    """Hashes that are looked for. number: for each of those given, its place among the different ones."""

    def __init__(self, wanted: np.ndarray) -> None:
        self.values, self.number = np.unique(wanted, return_inverse=True)
        self._table = np.zeros(2**_TABLE_BITS, bool)  # leaves out nearly all others without a search
        self._table[self.values >> np.uint64(64 - _TABLE_BITS)] = True

    def find(self, hashed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in `hashed` a wanted one is, and its number."""
        places = np.flatnonzero(self._table[hashed >> np.uint64(64 - _TABLE_BITS)])
        number = np.searchsorted(self.values, hashed[places]).clip(0, len(self.values) - 1)
        same = self.values[number] == hashed[places]
        return places[same], number[same]
