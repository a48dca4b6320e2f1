"""Distances between tensors, and hooks that record what modules and optimizers are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
_NOISE = 1e-5  # of the standard deviation of hidden states: rounding differs by less


def max_difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, divided by the standard deviation of `expected`; infinite if there is none."""
    if found.shape != expected.shape:
        return math.inf
    distance = float((found - expected).abs().max() / expected.std().clamp(min=1e-12))
    return math.inf if math.isnan(distance) else distance


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, divided by the norm of `expected`."""
    distance = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    return math.inf if math.isnan(distance) else distance


def differing(left: Tensor, right: Tensor) -> Tensor:
    """(B, T) bool: where hidden states (B, T, D) differ by more than rounding, or are not finite."""
    return ~((left - right).abs().amax(dim=-1) <= _NOISE * float(left.std()))


class NotCalledError(Exception):
    """A module of this name took no part in the forward pass."""


class Recording(dict[str, tuple[Tensor, Tensor]]):
    """The first input and the output of modules in their last call, by name."""

    def __missing__(self, name: str) -> tuple[Tensor, Tensor]:
        raise NotCalledError(name)


@contextmanager
def recorded(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Recording]:
    """Within it inputs and outputs of these modules are recorded, without their graph."""
    found = Recording()

    def keep(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple) and all(isinstance(part, Tensor) for part in output):
            output = torch.stack(output)
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            found[name] = inputs[0].detach(), output.detach()

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def at_each_step(optimizer: torch.optim.Optimizer, look: Callable[[], T]) -> list[T]:
    """A list that gets a result of `look` before each step of the optimizer."""
    found: list[T] = []
    optimizer.register_step_pre_hook(lambda *_: found.append(look()))
    return found
