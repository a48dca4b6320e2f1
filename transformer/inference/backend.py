"""What generation and evaluation ask of a model, whatever computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.inference.finite import all_finite
from transformer.inference.quantized_linear import Precision
from transformer.model import KVCache, Transformer


class InferenceBackend(ABC):
    """A model for inference: it keeps the weights as they were when it was made.

    Raises:
        CheckpointError: if there are NaN or infinity among the weights. Rounded to int8 they would look like others.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        for name, parameter in model.named_parameters():
            if not all_finite(parameter):
                raise CheckpointError(f"the weights {name!r} hold numbers that are NaN or infinite: they are damaged.")
        self.config, self.precision = model.config, precision
        self.device: torch.device = model.device

    @abstractmethod
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """Scores (logits) for the token that follows each position, (B, T, V), as those of `Transformer`."""

    @abstractmethod
    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """A cache for `batch_size` sequences of up to `capacity` tokens."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        """Read the beginning of a sequence in one pass, in place of what the cache has of that sequence."""

    @abstractmethod
    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        """Read one more token of every sequence; scores for the tokens that follow, (B, V)."""
