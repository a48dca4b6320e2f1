"""Does the compiled step compute what the same code computes uncompiled?

The step is compiled here as the run compiles it, for a copy of the model and a whole batch. What the compiler makes
depends on the code, the shapes and the settings alone, so that the run takes what was compiled here, and the time is
spent once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.preflight.check import Check
from transformer.preflight.subject import Alone, Subject, other_tokens
from transformer.training import trainer

_CLOSE = {True: 0.05, False: 2e-3}  # of a loss, or of the norm of a gradient, by whether the run multiplies in bf16
_NOISE = 1e-6  # of a loss: the same numbers, summed in another order


def compiled(subject: Subject) -> Check:
    """Loss and gradients are those of the uncompiled step, and tokens that come later change nothing before them.

    With dropout, which the compiler draws from other random numbers, only the second can be said.
    """
    name, expected = "compiled step", "loss and gradients of the uncompiled one; nothing sees what comes after it"
    model = subject.fresh()
    module = Alone(subject.engine.device).prepare(trainer.LanguageModelLoss(model, subject.bf16))
    module.compile(dynamic=False)  # as Trainer does
    batch = subject.fullest
    loss, gradient = _of_step(subject, model, module, batch)
    close = _CLOSE[subject.bf16 or subject.engine.device.type != "cpu"]
    measured = f"loss {loss:.5g}"
    if not model.config.dropout:
        wanted, gradient_wanted = _of_step(subject, model, module.forward, batch)
        apart = float((gradient - gradient_wanted).norm() / gradient_wanted.norm().clamp(min=1e-30))
        measured += f", uncompiled {wanted:.5g}; gradients {apart:.1e} apart"
        if not (abs(loss - wanted) <= close * abs(wanted) and apart <= close):
            cause = "Compiled, the step computes something else: train without --compile, or with other versions."
            return Check(name, measured, expected, "fail", cause)
    before, after = (_of_step(subject, model, module, one)[0] for one in _before_and_after(subject, batch))
    if not abs(before - after) <= _NOISE * abs(before):
        cause = "In the compiled step a token sees what comes after it: the loss is too good and no use."
        return Check(name, f"{before:.6g} becomes {after:.6g}", expected, "fail", cause)
    return Check(name, measured, expected)


def _of_step(subject: Subject, model: nn.Module, score: Callable[..., Tensor], batch: Batch) -> tuple[float, Tensor]:
    """The nats of a batch by a compiled module or its uncompiled `forward`, and their gradient in one vector."""
    torch.manual_seed(0)
    nats = subject.headless_stepper.nats(batch, score)
    model.zero_grad()
    nats.backward()
    gradients = [p.grad.detach().float().cpu().flatten() for p in model.parameters() if p.grad is not None]
    return float(nats.detach()), torch.cat(gradients)


def _before_and_after(subject: Subject, batch: Batch) -> tuple[Batch, Batch]:
    """A batch that learns the beginnings of its rows, and one with other tokens after them."""
    rows, length = batch.inputs.shape
    places = np.linspace(1, length - 1, rows).astype(int) if rows > 1 else [max(1, length // 2)]
    targets, inputs = batch.inputs.roll(-1, dims=1), batch.inputs.clone()
    for row, place in enumerate(places):
        targets[row, place:] = IGNORE_INDEX
        targets[row, place - 1] = 0  # not the next token, which is another in the second batch
        inputs[row : row + 1] = other_tokens(batch.inputs[row : row + 1], int(place), length, subject)
    return Batch(batch.inputs, targets, batch.segment_ids), Batch(inputs, targets, batch.segment_ids)
