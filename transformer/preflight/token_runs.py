"""Runs of tokens, found in a text by their hash.

Dimensions: N tokens
"""

from __future__ import annotations

import numpy as np

_CHUNK = 2**22  # tokens hashed at once
_TABLE_BITS = np.uint64(24)
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


class RunSearch:
    """Searches a text for runs of `length` tokens.

    number: of each run that is searched for, which one it is of the different ones.
    """

    def __init__(self, wanted: np.ndarray, length: int) -> None:
        """wanted: the runs' hashes, of any shape."""
        self.length = length
        self._values, number = np.unique(wanted, return_inverse=True)
        self.number: np.ndarray = number.reshape(wanted.shape)
        self._table = np.zeros(1 << int(_TABLE_BITS), bool)  # leaves out nearly all other runs without a search
        self._table[_slot(self._values)] = True

    def find(self, tokens: np.ndarray) -> list[np.ndarray]:
        """For each of the different runs, where it begins in `tokens` (N,), in ascending order."""
        places, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for start in range(0, max(0, len(tokens) - self.length + 1), _CHUNK):
            hashed = hashes(tokens[start : start + _CHUNK + self.length - 1], self.length)
            place = np.flatnonzero(self._table[_slot(hashed)])
            number = np.searchsorted(self._values, hashed[place]).clip(0, len(self._values) - 1)
            same = self._values[number] == hashed[place]
            places.append(start + place[same])
            numbers.append(number[same])
        number = np.concatenate(numbers)
        order = np.argsort(number, kind="stable")
        return np.split(np.concatenate(places)[order], np.searchsorted(number[order], range(1, len(self._values))))


def _slot(hashed: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (hashed * _BASE) >> (np.uint64(64) - _TABLE_BITS)
