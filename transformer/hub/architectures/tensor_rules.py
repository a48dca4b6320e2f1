"""Rules for the conversion of tensors of a weights file to our parameters, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from transformer.model.config import ModelConfig

State = Mapping[str, Tensor]


class TensorRule:
    """A tensor under another name.

    Args:
        ours: names of our parameters in the tensor. `{i}` stands for the number of the layer.
    """

    def __init__(self, *ours: str) -> None:
        self.ours = ours

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        """The tensor of the file, from our parameters."""
        return state[self.ours[0]]

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        """Our parameters, from the tensor of the file."""
        return {self.ours[0]: tensor}

    def at_layer(self, i: int) -> Self:
        """The rule of one layer."""
        return type(self)(*(name.format(i=i) for name in self.ours))


class Conv1D(TensorRule):
    """GPT-2's `Conv1D`: a linear layer stored transposed, or several of them with concatenated outputs."""

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        fused = torch.cat([state[name] for name in self.ours])
        return fused.t().contiguous() if fused.dim() == 2 else fused

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        fused = tensor.t() if tensor.dim() == 2 else tensor
        parts = fused.chunk(len(self.ours))
        return {name: part.contiguous() for name, part in zip(self.ours, parts, strict=True)}


def linear(theirs: str, *ours: str, rule: type[TensorRule] = TensorRule) -> dict[str, TensorRule]:
    """The rules for a weight and a bias. That of a bias that the model does not have is removed later."""
    return {f"{theirs}.{part}": rule(*(f"{name}.{part}" for name in ours)) for part in ("weight", "bias")}
