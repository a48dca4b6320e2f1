"""What a decode loop asks of a model, whatever it is computed with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.inference.finite import all_finite
from transformer.inference.linear import Precision
from transformer.inference.memory import Memory
from transformer.model import Transformer


class ServedTransformer(ABC):
    """A model to serve or to evaluate, not to train: it keeps the weights as they were when it was made.

    Raises:
        CheckpointError: if there are NaN or infinity among the weights. Rounded to int8 they would look like others.
    """

    training = False

    def __init__(self, model: Transformer, precision: Precision) -> None:
        for name, parameter in model.named_parameters():
            if not all_finite(parameter):
                raise CheckpointError(f"the weights {name!r} hold numbers that are NaN or infinite: they are damaged.")
        self.config, self.precision = model.config, precision
        self.device: torch.device = model.token_embedding.weight.device

    @abstractmethod
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """Scores (logits) for the token that follows each position, (B, T, V), as those of `Transformer`."""

    @abstractmethod
    def remember(self, batch_size: int, capacity: int) -> Memory:
        """Memory for so many texts of up to `capacity` tokens."""

    @abstractmethod
    def read(self, tokens: Sequence[int], memory: Memory, text: int) -> None:
        """Read the beginning of a text in one pass, in place of what the memory has of that text."""

    @abstractmethod
    def step(self, tokens_B: Tensor, memory: Memory) -> Tensor:
        """Read one more token of every text; scores for the tokens that follow, (B, V)."""
