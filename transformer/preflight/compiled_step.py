"""Does the compiled step compute what the same code computes uncompiled?

The step is compiled here as the run compiles it, for a copy of the model and a whole batch. The compiler caches its
result by code, shapes and settings, so that the run uses it too and the time is spent once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.preflight.check import Expected, Finding
from transformer.preflight.measure import relative_error
from transformer.preflight.subject import Subject, other_tokens
from transformer.training.step import Stepper

_CLOSE = {True: 0.05, False: 2e-3}  # of a loss, or of the norm of a gradient, by `coarse`
_NOISE = 1e-6  # of a loss: the same numbers, summed in another order


def compiled(subject: Subject) -> Finding:
    """Loss and gradients are those of the uncompiled step, and later tokens do not change the loss of earlier ones.

    With dropout, which the compiler draws from other random numbers, only the second is compared.
    """
    expected = Expected("loss and gradients of the uncompiled one; nothing depends on later tokens")
    batch, model = subject.fullest, subject.copy_of_model()
    stepper = subject.stepper(model, batch, compile=True)
    loss, gradient = _loss_and_gradient(stepper, model, stepper.module, batch)
    measured = f"loss {loss:.5g}"
    if not subject.model.config.dropout:
        wanted, wanted_gradient = _loss_and_gradient(stepper, model, stepper.uncompiled, batch)
        distance, close = relative_error(gradient, wanted_gradient), _CLOSE[subject.coarse]
        measured += f", uncompiled {wanted:.5g}; gradients {distance:.1e} apart"
        if not (abs(loss - wanted) <= close * abs(wanted) and distance <= close):
            cause = "Compiled, the step computes something else: train without --compile, or with other versions."
            return expected.failed(measured, cause)
    pair = (_loss_and_gradient(stepper, model, stepper.module, one)[0] for one in _with_other_future(subject, batch))
    before, after = pair
    if not abs(before - after) <= _NOISE * abs(before):
        cause = (
            "In the compiled step a token attends to later ones, so the loss is too low: train without --compile, or "
            "with other versions."
        )
        return expected.failed(f"{before:.6g} becomes {after:.6g}", cause)
    return expected.passed(measured)


def _loss_and_gradient(
    stepper: Stepper, model: nn.Module, score: Callable[..., Tensor], batch: Batch
) -> tuple[float, Tensor]:
    """The summed loss of a batch by the compiled module or the uncompiled one, and its gradient in one vector."""
    torch.manual_seed(0)
    nats = stepper.nats(batch, score)
    model.zero_grad()
    nats.backward()
    gradients = [p.grad.detach().float().cpu().flatten() for p in model.parameters() if p.grad is not None]
    return float(nats.detach()), torch.cat(gradients)


def _with_other_future(subject: Subject, batch: Batch) -> tuple[Batch, Batch]:
    """A batch whose targets are at the beginnings of its rows, and the same with other tokens after them."""
    rows, length = batch.inputs.shape
    places = np.linspace(1, length - 1, rows).astype(int) if rows > 1 else [max(1, length // 2)]
    targets, inputs = batch.inputs.roll(-1, dims=1), batch.inputs.clone()
    for row, place in enumerate(places):
        targets[row, place:] = IGNORE_INDEX
        targets[row, place - 1] = 0  # not the next token, which is another in the second batch
        inputs[row : row + 1] = other_tokens(batch.inputs[row : row + 1], int(place), length, subject)
    return Batch(batch.inputs, targets, batch.segment_ids), Batch(inputs, targets, batch.segment_ids)
