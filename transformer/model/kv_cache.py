"""The cache of keys and values of past tokens.

Dimensions: B sequences · K key-value heads · T new tokens · S tokens attended to · C capacity of a layer in tokens
            E width of a head's keys · V of its values
"""

from __future__ import annotations

import copy

from torch import Tensor


class KVCache:
    """Keys and values of a batch of sequences of different lengths, without padding.

    The token of sequence b at position p is in row b, column p mod C. The cache of a layer with a sliding window is a
    ring buffer of the window: a new token overwrites the oldest one. Keys are rotated before they are cached, so their
    order does not matter.

    Args:
        keys: of each layer (B, K, C, E); backends may use other layouts with sequences first. Initial values must be
            finite and are not used.
        values: of each layer (B, K, C, V).
        capacity: largest number of tokens of a sequence; C of layers without a window.

    Attributes:
        lengths: number of tokens of each sequence.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], capacity: int) -> None:
        self.keys, self.values, self.capacity = keys, values, capacity
        self.lengths = [0] * len(keys[0])

    def tensors(self) -> list[Tensor]:
        """All tensors of the cache; the first dimension of each is B."""
        return [*self.keys, *self.values]

    def emptied(self) -> KVCache:
        """An empty cache that reuses the memory of this one."""
        emptied = copy.copy(self)
        emptied.lengths = [0] * len(self.lengths)
        return emptied

    @property
    def has_equal_lengths(self) -> bool:
        """Whether all sequences have the same length, so that decoding needs no mask."""
        return self.lengths.count(self.lengths[0]) == len(self.lengths)

    def copy(self, source: int, target: int) -> None:
        """Make sequence `target` a copy of sequence `source`."""
        self.lengths[target] = self.lengths[source]
        for tensor in self.tensors():
            tensor[target] = tensor[source]

    def drop(self, sequence: int) -> None:
        """Remove a sequence; the last one moves into its row."""
        last = len(self.lengths) - 1
        if sequence != last:
            self.copy(last, sequence)
        self.lengths.pop()
        self.keys, self.values = ([tensor[:last] for tensor in layers] for layers in (self.keys, self.values))

    # These methods write new keys (B, K, T, E) and values (B, K, T, V) of one layer, and return the keys (B, K, S, E)
    # and values (B, K, S, V) that the new tokens attend to.

    def update_sequence(self, layer: int, sequence: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The first T tokens of one sequence, B = 1."""
        for cached, new in ((self.keys[layer][sequence], key[0]), (self.values[layer][sequence], value[0])):
            length, capacity = new.shape[1], cached.shape[1]
            if length <= capacity:
                cached[:, :length] = new
            else:
                cached.copy_(new[:, -capacity:].roll(length % capacity, dims=1))
        return key, value

    def update_column(self, layer: int, column: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """One token of every sequence, T = 1, all at the same position."""
        keys, values = self.keys[layer], self.values[layer]
        capacity = keys.shape[2]
        slot, filled = column % capacity, min(column + 1, capacity)
        keys.narrow(2, slot, 1).copy_(key)
        values.narrow(2, slot, 1).copy_(value)
        return keys.narrow(2, 0, filled), values.narrow(2, 0, filled)

    def update_rows(
        self, layer: int, rows_B: Tensor, positions_B: Tensor, limit: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One token of every sequence, T = 1, each at its own position, which is less than `limit`."""
        keys, values = self.keys[layer], self.values[layer]
        slots_B = positions_B % keys.shape[2]
        keys[rows_B, :, slots_B] = key[:, :, 0].to(keys.dtype)
        values[rows_B, :, slots_B] = value[:, :, 0].to(values.dtype)
        return keys[:, :, :limit], values[:, :, :limit]
