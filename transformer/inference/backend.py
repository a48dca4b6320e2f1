"""The interface of inference backends, which generation and evaluation use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.inference.finite import all_finite
from transformer.inference.quantized_linear import Precision
from transformer.inference.weight_memory import UnchangedMappings
from transformer.model import KVCache, Transformer


class InferenceBackend(ABC):
    """A model prepared for inference. Later changes of the original weights have no effect on it.

    Raises:
        CheckpointError: if a weight is NaN or infinite. Quantization to int8 would hide it.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        files = UnchangedMappings(model.parameters())
        for name, parameter in model.named_parameters():
            if not all_finite(parameter):
                raise CheckpointError(f"the weights {name!r} hold numbers that are NaN or infinite: they are damaged.")
            files.give_back(parameter)
        self.config, self.precision = model.config, precision
        self.device: torch.device = model.device

    @abstractmethod
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """Logits for the token after each position, (B, T, V), as `Transformer` returns them."""

    @abstractmethod
    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """A cache for `batch_size` sequences of up to `capacity` tokens."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        """Compute the keys and values of a prompt in one pass. They replace those of the sequence in the cache."""

    @abstractmethod
    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        """Append one token (B,) to every sequence, and return the logits for the next one, (B, V)."""
