"""What served texts remember: keys and values of texts of different lengths, side by side.

Dimensions: B texts · K key-value heads · C capacity in tokens · E width of a head's keys · V of its values
"""

from __future__ import annotations

import torch
from torch import Tensor

from transformer.model import ModelConfig


class Memory:
    """The token of text b at position p stands at column p of row b: no text needs padding because of another.

    Args:
        batch_size: B. capacity: C, in tokens.

    Attributes:
        keys: of each layer (B, K, C, E). values: of each layer (B, K, C, V).
        real: (B, C), False at padding tokens; None for a model that knows none.
        lengths: of the texts, in tokens.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def memory(width: int) -> list[Tensor]:
            shape = (batch_size, config.kv_heads, capacity, width)
            return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]

        self.keys, self.values = memory(config.key_dim), memory(config.value_dim)
        self.real: Tensor | None = None
        if config.pad_token_id is not None:
            self.real = torch.ones(batch_size, capacity, device=device, dtype=torch.bool)
        self.lengths = [0] * batch_size
        self.capacity = capacity

    def copy(self, source: int, target: int) -> None:
        """Text `target` has read what `source` has."""
        length = self.lengths[target] = self.lengths[source]
        for memory in (*self.keys, *self.values):
            memory[target, :, :length] = memory[source, :, :length]
        if self.real is not None:
            self.real[target, :length] = self.real[source, :length]

    def drop(self, text: int) -> None:
        """Forget a text for good; the last one moves into its row."""
        last = len(self.lengths) - 1
        if text != last:
            self.copy(last, text)
        self.lengths.pop()
        self.keys, self.values = ([memory[:last] for memory in layers] for layers in (self.keys, self.values))
        self.real = None if self.real is None else self.real[:last]
