"""An exponential moving average of the weights (Polyak & Juditsky, 1992), by which a run is validated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.model import Transformer
from transformer.training.distributed import full_tensor, like

_PREFIX = "average."


class WeightAverage:
    """The average of a model's weights over its last steps.

    After step t: average = decay_t · average + (1 - decay_t) · weights, with decay_t = min(decay, (1 + t) / (10 + t)).
    While the run is young, its first weights are soon forgotten.

    Args:
        decay: in (0, 1); the average spans about 1 / (1 - decay) steps.
    """

    def __init__(self, model: Transformer, decay: float) -> None:
        self.model, self.decay = model, decay
        self._average = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, [p.detach() for p in self.model.parameters()], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average as its weights."""
        with torch.no_grad():
            current = [parameter.detach().clone() for parameter in self.model.parameters()]
            self._copy(self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                self._copy(current)

    def collect(self) -> dict[str, Tensor]:
        """The average by names of checkpoints, whole and on the CPU; with shards every process has to call it."""
        names = (name for name, _ in self.model.named_parameters())
        return {f"{_PREFIX}{name}": full_tensor(value) for name, value in zip(names, self._average, strict=True)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `collect` gave.

        Raises:
            CheckpointError: if it is not the average of this model.
        """
        try:
            for (name, parameter), value in zip(self.model.named_parameters(), self._average, strict=True):
                value.copy_(like(tensors[f"{_PREFIX}{name}"], parameter))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint has no average of these weights: {error}.") from error

    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            parameter.copy_(value)


def without_average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are not of an average."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
