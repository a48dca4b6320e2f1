"""Evaluation mode of a model for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """A context in which `model` is in evaluation mode, if it is an `nn.Module`; its mode is restored at the end."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
