"""Checks of the training step: the run's own `TrainStep` and optimizers train a small model.

Gradients are compared with those that autograd gives for the same batches, and those of a compiled step with those of
the uncompiled one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.preflight.check import Check, Expected, listed
from transformer.preflight.measure import at_each_step, relative_error
from transformer.preflight.small_run import parameters_of, small_batches, small_model, small_train_step
from transformer.preflight.subject import Subject, other_tokens
from transformer.training.optimizers import set_learning_rate
from transformer.training.step import TrainStep

_ACCUMULATED = 3  # batches in a step
_MAX_NORM = 1e-2  # small enough to clip every gradient
_CLOSE = {True: 0.05, False: 1e-3}  # of the norm of a gradient, by `coarse`
_ROUNDING = 0.05  # of a factor
_CLOSE_COMPILED = {True: 0.05, False: 2e-3}  # of a loss, or of the norm of a gradient, by `coarse`
_NOISE = 1e-6  # of a loss: the same numbers, summed in another order


def updated(subject: Subject) -> Check:
    """The optimizers move every parameter that has a gradient, downhill, as far as the learning rate says."""
    expected = Expected("every parameter with a gradient moves downhill, and none with a learning rate of 0")
    model = small_model(subject)
    train_step = small_train_step(subject, model, small_batches(subject, model))
    seen = at_each_step(train_step.optimizers[0], lambda: _gradients_by_name(model))
    set_learning_rate(train_step.optimizers, 1.0)
    before = parameters_of(model)
    train_step.run(1)
    after = parameters_of(model)
    if not seen:
        return expected.failed("the optimizer is not called", "A step does not call it: look at TrainStep.run.")
    gradients, moves = seen[0], {name: after[name] - value for name, value in before.items()}
    if still := [name for name, gradient in gradients.items() if gradient.any() and not moves[name].any()]:
        cause = f"A step does not change {listed(still)}: the optimizers were not given it, or do not make their step."
        return expected.failed(f"{len(still)} of {len(moves)} parameters do not move", cause)
    if not sum(float((moves[name].double() * gradient.double()).sum()) for name, gradient in gradients.items()) < 0:
        return expected.failed("uphill", "A step follows the gradient uphill: look for maximize, or a sign.")
    set_learning_rate(train_step.optimizers, 0.0)
    train_step.run(2)
    if not all(torch.equal(value, after[name]) for name, value in parameters_of(model).items()):
        cause = "With a learning rate of 0 the weights change: the schedule does not reach the optimizers' groups."
        return expected.failed("they change with a learning rate of 0", cause)
    groups = [group for optimizer in train_step.optimizers for group in optimizer.param_groups]
    decaying = {id(p) for group in groups if group.get("weight_decay") for p in group["params"]}
    if decayed := [name for name, p in model.named_parameters() if p.dim() < 2 and id(p) in decaying]:
        cause = f"Weight decay is applied to {listed(decayed)}: it is for matrices, not for norms and biases."
        return expected.warned("norms or biases decay", cause)
    return expected.passed(f"{len(gradients)} parameters")


def _step_gradients(subject: Subject, n_steps: int, n_batches: int) -> tuple[list[Tensor], list[list[Tensor]]]:
    """For each step of `n_batches`, the gradient that the optimizer gets, and those that autograd gives for each batch,
    divided by the targets of the step; as vectors."""
    model = small_model(subject)
    batches = small_batches(subject, model)
    options = dict(gradient_accumulation_steps=n_batches, max_grad_norm=float("inf"))
    train_step = small_train_step(subject, model, batches, **options)
    found = at_each_step(train_step.optimizers[0], lambda: _gradient(model))
    by_autograd = []
    for number in range(n_steps):
        learned = batches[number * n_batches : (number + 1) * n_batches]
        total = sum(batch.n_targets for batch in learned)
        by_autograd.append([_loss_and_gradient(train_step, batch, divisor=total)[1] for batch in learned])
        train_step.run(number + 1)
    return found, by_autograd


def _gradients_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients that there are, on the CPU."""
    return {name: p.grad.detach().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}


def _gradient(model: nn.Module) -> Tensor:
    """The gradients of all trained parameters as one vector, with zeros for a parameter that has none."""
    return _flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad)


def _loss_and_gradient(
    train_step: TrainStep, batch: Batch, module: Callable[..., Tensor] | None = None, divisor: int = 1
) -> tuple[float, Tensor]:
    """The summed loss of a batch, divided by `divisor`, and its gradient. module: as in `TrainStep.summed_loss`."""
    torch.manual_seed(0)
    loss = train_step.summed_loss(batch, module) / divisor
    parameters = [parameter for parameter in train_step.model.parameters() if parameter.requires_grad]
    return float(loss.detach()), _flat(torch.autograd.grad(loss, parameters, materialize_grads=True))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector, in fp64 on the CPU."""
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])


def accumulation(subject: Subject) -> Check:
    """The gradient of a step of several batches is that of the mean over all their targets."""
    expected, close = Expected("the gradient of the mean over all targets of the step"), _CLOSE[subject.coarse]
    (found,), (parts,) = _step_gradients(subject, 1, _ACCUMULATED)
    wanted = torch.stack(parts).sum(dim=0)
    distance = relative_error(found, wanted)
    if distance <= close:
        return expected.passed(f"{distance:.1e} apart, for {_ACCUMULATED} batches")
    counts = [batch.n_targets for batch in small_batches(subject, small_model(subject))[:_ACCUMULATED]]
    total, ratio = sum(counts), float(found @ wanted / (wanted @ wanted))
    if relative_error(found, ratio * wanted) <= close:
        reasons = (
            (_ACCUMULATED, ": the batches are not divided by their number"),
            (1 / _ACCUMULATED, ": it is divided by the number of batches a second time"),
            (total, ": the sum over the targets is not divided by their number"),
            (1 / total, ": it is divided by the number of targets a second time"),
        )
        why = next((why for factor, why in reasons if abs(ratio / factor - 1) < _ROUNDING), "")
        cause = f"The gradient of a step is {ratio:.3g} times that of the mean over its targets{why}."
        return expected.failed(f"{ratio:.3g} times", cause)
    means = [total / count * part for count, part in zip(counts, parts, strict=True)]
    summed = torch.stack(means).sum(dim=0)
    for other, why in (
        (parts[-1], "only the last batch of a step reaches the optimizer: gradients are set to zero between batches"),
        (means[-1], "only the last batch of a step reaches the optimizer"),
        (parts[0], "only the first batch of a step is learned from"),
        (summed, "each batch is divided by its own targets, and they are summed without dividing by their number"),
        (summed / _ACCUMULATED, "each batch counts the same, however many targets it has (the mean of means)"),
    ):
        if relative_error(found, other) <= close:
            return expected.failed("other batches, or other weights for them", f"In a step {why}.")
    cause = "The gradient that reaches the optimizer is not that of the batches of the step: look at TrainStep.run."
    return expected.failed(f"{distance:.2g} apart, by its size", cause)


def zeroed(subject: Subject) -> Check:
    """The second step does not contain the gradient of the first."""
    expected, close = Expected("none is left of the step before"), _CLOSE[subject.coarse]
    (first, found), ((first_wanted,), (wanted,)) = _step_gradients(subject, 2, 1)
    if relative_error(found, wanted) <= close:
        return expected.passed("none")
    # What is left of the first may be its sum with this one, whatever factor the first has.
    if relative_error(found - wanted, first) <= close * max(1.0, float(wanted.norm() / first.norm())):
        cause = "A step adds its gradient to that of the step before: zero_grad is missing after the update."
        return expected.failed("that of the step before", cause)
    if relative_error(first, first_wanted) > close:
        return expected.passed("not known: the first step has another gradient too")
    cause = "The gradient of the second step is not that of its batches, though the first one's was: look at zero_grad."
    return expected.failed("something else", cause)


def clipping(subject: Subject) -> Check:
    """The norm of the gradient is at most --max-grad-norm when the optimizer gets it."""
    expected = Expected("a gradient with the norm --max-grad-norm, if it was larger")
    model = small_model(subject)
    train_step = small_train_step(subject, model, small_batches(subject, model), max_grad_norm=_MAX_NORM)
    norms = at_each_step(train_step.optimizers[0], lambda: float(_gradient(model).norm()))
    train_step.run(1)
    ratio = norms[0] / _MAX_NORM
    if abs(ratio - 1) < _ROUNDING:
        return expected.passed("it has")
    cause = f"With --max-grad-norm {_MAX_NORM} the optimizer gets a norm of {norms[0]:.3g}: clip once, before its step."
    return expected.failed(f"{ratio:.3g} times the norm", cause)


def compiled(subject: Subject) -> Check:
    """Loss and gradients are those of the uncompiled step, and later tokens do not change the loss of earlier ones.

    The compiler caches its result, so that the run does not compile again.
    """
    expected = Expected("loss and gradients of the uncompiled one; nothing depends on later tokens")
    if not subject.config.run.compile:
        return expected.passed("steps are not compiled")
    batch = subject.fullest
    train_step = subject.make_train_step(subject.copy_of_model(), batch, compile=True)
    loss, gradient = _loss_and_gradient(train_step, batch)
    measured = f"loss {loss:.5g}"
    if not subject.model.config.dropout:  # for which compiled code draws other random numbers
        wanted, wanted_gradient = _loss_and_gradient(train_step, batch, train_step.uncompiled)
        distance, close = relative_error(gradient, wanted_gradient), _CLOSE_COMPILED[subject.coarse]
        measured += f", uncompiled {wanted:.5g}; gradients {distance:.1e} apart"
        if not (abs(loss - wanted) <= close * abs(wanted) and distance <= close):
            cause = "Compiled, the step computes something else: train without --compile, or with other versions."
            return expected.failed(measured, cause)
    rows, length = batch.inputs.shape
    later = torch.arange(length) >= torch.linspace(1, length - 1, rows + 2).long()[1:-1, None]  # from another place on
    targets = torch.zeros_like(batch.inputs).masked_fill(later, IGNORE_INDEX)
    other = batch.inputs.where(~later, other_tokens(batch.inputs, 0, length, subject))
    pair = (Batch(inputs, targets, batch.segment_ids) for inputs in (batch.inputs, other))
    before, after = (_loss_and_gradient(train_step, one)[0] for one in pair)
    if not abs(before - after) <= _NOISE * abs(before):
        cause = "In the compiled step a token attends to later ones: train without --compile, or with other versions."
        return expected.failed(f"{before:.6g} becomes {after:.6g}", cause)
    return expected.passed(measured)
