"""An exponential moving average of the weights (Polyak & Juditsky, 1992), which is validated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.model import Transformer
from transformer.training.distributed import full_tensor, shard_like

_PREFIX = "average."


class WeightAverage:
    """The exponential moving average of a model's weights.

    After step t: average = decay_t · average + (1 - decay_t) · weights, with decay_t = min(decay, (1 + t) / (10 + t)),
    so that the first, untrained weights soon have no part in it.

    Args:
        decay: in (0, 1); the average spans about 1 / (1 - decay) steps.
    """

    def __init__(self, model: Transformer, decay: float) -> None:
        self.model, self.decay = model, decay
        self._average = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after this step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, [p.detach() for p in self.model.parameters()], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model's weights are the average."""
        with torch.no_grad():
            current = [parameter.detach().clone() for parameter in self.model.parameters()]
            self._copy(self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                self._copy(current)

    def state_dict(self) -> dict[str, Tensor]:
        """The average as full tensors on the CPU, named as in checkpoints. With FSDP every process has to call this."""
        names = (name for name, _ in self.model.named_parameters())
        return {f"{_PREFIX}{name}": full_tensor(value) for name, value in zip(names, self._average, strict=True)}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned; other tensors are ignored.

        Raises:
            CheckpointError: if there is no average of this model's weights among them.
        """
        try:
            for (name, parameter), value in zip(self.model.named_parameters(), self._average, strict=True):
                value.copy_(shard_like(tensors[f"{_PREFIX}{name}"], parameter))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint has no average of these weights: {error}.") from error

    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            parameter.copy_(value)


def without_average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint without those of a `WeightAverage`."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
