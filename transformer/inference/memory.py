"""What served texts remember: keys and values of texts of different lengths, side by side.

Dimensions: B texts · K key-value heads · C capacity in tokens · E width of a head's keys · V of its values
"""

from __future__ import annotations

from torch import Tensor


class Memory:
    """The token of text b at position p stands at column p of row b: no text needs padding because of another.

    Args:
        keys: of each layer (B, K, C, E). values: of each layer (B, K, C, V). Whatever their arrangement is, texts come
            first. What they hold at first does not matter, if it is finite.
        real: (B, C), False at padding tokens; None for a model that knows none.

    Attributes:
        lengths: of the texts, in tokens.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], real: Tensor | None = None) -> None:
        self.keys, self.values, self.real = keys, values, real
        self.lengths = [0] * len(keys[0])

    def copy(self, source: int, target: int) -> None:
        """Text `target` has read what `source` has."""
        self.lengths[target] = self.lengths[source]
        for memory in (*self.keys, *self.values, *([] if self.real is None else [self.real])):
            memory[target] = memory[source]

    def drop(self, text: int) -> None:
        """Forget a text for good; the last one moves into its row."""
        last = len(self.lengths) - 1
        if text != last:
            self.copy(last, text)
        self.lengths.pop()
        self.keys, self.values = ([memory[:last] for memory in layers] for layers in (self.keys, self.values))
        self.real = None if self.real is None else self.real[:last]
