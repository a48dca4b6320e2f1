"""Do the steps of a run do what they should? Its own `Stepper` and optimizers train a small model.

Gradients are compared with those that autograd gives for the same batches at once. All of this depends on the code, not
on the size of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transformer.data.batches import Batch
from transformer.preflight.check import Check, Expected, Finding, listed
from transformer.preflight.measure import at_each_step, relative_error
from transformer.preflight.small_run import parameters_of, small_batches, small_model, small_stepper
from transformer.preflight.subject import Subject, n_targets
from transformer.training.optimizers import set_learning_rate
from transformer.training.step import Stepper

_ACCUMULATED = 3  # batches in a step
_MAX_NORM = 1e-2  # small enough to clip every gradient
_CLOSE = {True: 0.05, False: 1e-3}  # of the norm of a gradient, by `coarse`
_ROUNDING = 0.05  # of a factor

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """Two steps of the run with accumulation, then one with clipping and a learning rate of 0.

    found, expected: gradients of the first two, by the run and by autograd, as vectors. parts: of each batch of the
    first, by autograd. before, after: parameters around the first. gradient: of the first, by parameter. clipped: the
    norm in the third. unchanged: whether it changed nothing. decayed: parameters that are no matrices and decay.
    """

    batches: list[Batch]
    found: list[Tensor]
    expected: list[Tensor]
    parts: list[Tensor]
    before: Gradients
    after: Gradients
    gradient: Gradients
    clipped: float
    unchanged: bool
    decayed: list[str]
    close: float


def steps(subject: Subject) -> Steps | Check:
    """Make the steps that the checks of this module compare; the check "updates" if they call no optimizer."""
    model = small_model(subject)
    batches = small_batches(subject, model)
    no_limit = float("inf")
    stepper = small_stepper(subject, model, batches, gradient_accumulation_steps=_ACCUMULATED, max_grad_norm=no_limit)
    seen = at_each_step(stepper.optimizers[0], lambda: _gradients_of(model))
    set_learning_rate(stepper.optimizers, 1.0)
    before, after = parameters_of(model), Gradients()
    found, expected, parts = [], [], []
    for number in range(2):
        learned = batches[number * _ACCUMULATED : (number + 1) * _ACCUMULATED]
        total = sum(map(n_targets, learned))
        by_batch = [_by_autograd(stepper, model, batch, total) for batch in learned]
        expected.append(torch.stack(by_batch).sum(dim=0))
        parts += by_batch
        model.train()
        stepper.step(number + 1)
        if len(seen) != number + 1:
            cause = "A step does not call its optimizer, so that nothing is learned: look at Stepper.step."
            return Check.of("updates", _UPDATES.failed("the optimizer is not called", cause))
        found.append(_flat(seen[-1], model))
        after = after or parameters_of(model)
    clipping = small_stepper(subject, model, batches, gradient_accumulation_steps=1, max_grad_norm=_MAX_NORM)
    clipped = at_each_step(clipping.optimizers[0], lambda: _gradients_of(model))
    set_learning_rate(clipping.optimizers, 0.0)
    model.zero_grad()
    still = parameters_of(model)
    clipping.step(3)
    unchanged = all(torch.equal(value, still[name]) for name, value in parameters_of(model).items())
    norm, decayed = float(_flat(clipped[-1], model).norm()), _decayed(stepper.optimizers, model)
    close = _CLOSE[subject.coarse]
    return Steps(batches, found, expected, parts, before, after, seen[0], norm, unchanged, decayed, close)


def _gradients_of(model: nn.Module) -> Gradients:
    """Copies of all gradients, by the parameter's name."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def _by_autograd(stepper: Stepper, model: nn.Module, batch: Batch, total: int) -> Tensor:
    """The gradient of a batch's summed loss, divided by `total` targets, as a vector; `grad` is left as it is."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    nats = stepper.nats(batch, stepper.module) / total
    gradients = torch.autograd.grad(nats, [p for _, p in named], allow_unused=True)
    return _flat({name: g for (name, _), g in zip(named, gradients, strict=True) if g is not None}, model)


def _flat(gradients: Gradients, model: nn.Module) -> Tensor:
    """All gradients in one vector, in fp64 on the CPU; 0 where a parameter has none."""
    parts = [gradients.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()]
    return torch.cat([part.detach().cpu().double().flatten() for part in parts])


def _decayed(optimizers: list[torch.optim.Optimizer], model: nn.Module) -> list[str]:
    """Norms and biases that have weight decay."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if group.get("weight_decay")]
    decayed = {id(parameter) for group in groups for parameter in group["params"]}
    return [name for name, p in model.named_parameters() if p.dim() < 2 and id(p) in decayed]


def accumulation(steps: Steps) -> Finding:
    """The gradient of a step of several batches is that of the mean over all their targets."""
    expected = Expected("the gradient of the mean over all targets of the step")
    found, wanted = steps.found[0], steps.expected[0]
    distance = relative_error(found, wanted)
    if distance <= steps.close:
        return expected.passed(f"{distance:.1e} apart, for {_ACCUMULATED} batches")
    counts = [n_targets(batch) for batch in steps.batches[:_ACCUMULATED]]
    total, ratio = sum(counts), float(found @ wanted / (wanted @ wanted))
    if relative_error(found, ratio * wanted) <= steps.close:
        reasons = (
            (_ACCUMULATED, ": the batches are not divided by their number"),
            (1 / _ACCUMULATED, ": it is divided by the number of batches a second time"),
            (total, ": the sum over the targets is not divided by their number"),
            (1 / total, ": it is divided by the number of targets a second time"),
        )
        why = next((why for factor, why in reasons if abs(ratio / factor - 1) < _ROUNDING), "")
        cause = (
            f"The gradient of a step of {_ACCUMULATED} batches is {ratio:.3g} times that of the mean over its targets"
            f"{why}; look at Stepper.step."
        )
        return expected.failed(f"{ratio:.3g} times", cause)
    parts = steps.parts[:_ACCUMULATED]
    means = [total / count * part for count, part in zip(counts, parts, strict=True)]
    summed = torch.stack(means).sum(dim=0)
    for other, why in (
        (parts[-1], "only the last batch of a step reaches the optimizer: gradients are set to zero between batches"),
        (means[-1], "only the last batch of a step reaches the optimizer"),
        (parts[0], "only the first batch of a step is learned from"),
        (summed, "each batch is divided by its own targets, and they are summed without dividing by their number"),
        (summed / _ACCUMULATED, "each batch counts the same, however many targets it has (the mean of means)"),
    ):
        if relative_error(found, other) <= steps.close:
            return expected.failed("other batches, or other weights for them", f"In a step {why}.")
    cause = "The gradient that reaches the optimizer is not that of the batches of the step: look at Stepper.step."
    return expected.failed(f"{distance:.2g} apart, by its size", cause)


def zeroed(steps: Steps) -> Finding:
    """The second step does not contain the gradient of the first."""
    expected = Expected("none is left of the step before")
    found, wanted, first = steps.found[1], steps.expected[1], steps.found[0]
    if relative_error(found, wanted) <= steps.close:
        return expected.passed("none")
    # What is left of the first may be its sum with this one, whatever factor the first has.
    if relative_error(found - wanted, first) <= steps.close * max(1.0, float(wanted.norm() / first.norm())):
        cause = "A step adds its gradient to that of the step before: zero_grad is missing after the update."
        return expected.failed("that of the step before", cause)
    if relative_error(first, steps.expected[0]) > steps.close:
        return expected.passed("not known: the first step has another gradient too")
    cause = "The gradient of the second step is not that of its batches, though the first one's was: look at zero_grad."
    return expected.failed("something else", cause)


def clipping(steps: Steps) -> Finding:
    """The norm of the gradient is at most --max-grad-norm when the optimizer gets it."""
    expected = Expected("a gradient with the norm --max-grad-norm, if it was larger")
    ratio = steps.clipped / _MAX_NORM
    if abs(ratio - 1) < _ROUNDING:
        return expected.passed("it has")
    cause = (
        f"With --max-grad-norm {_MAX_NORM} the optimizer gets a gradient of norm {steps.clipped:.3g}: clip it once, "
        "before the optimizer's step."
    )
    return expected.failed(f"{ratio:.3g} times the norm", cause)


_UPDATES = Expected("every parameter with a gradient moves downhill, and none with a learning rate of 0")


def updated(steps: Steps) -> Finding:
    """The optimizers move every parameter that has a gradient, downhill, as far as the learning rate says."""
    moves = {name: steps.after[name] - before for name, before in steps.before.items()}
    still = [name for name, gradient in steps.gradient.items() if gradient.any() and not moves[name].any()]
    if still:
        cause = f"A step does not change {listed(still)}: the optimizers were not given it, or do not make their step."
        return _UPDATES.failed(f"{len(still)} of {len(moves)} parameters do not move", cause)
    slope = sum(float((moves[name].double() * g.cpu().double()).sum()) for name, g in steps.gradient.items())
    if not slope < 0:
        cause = "A step follows the gradient uphill, so that the loss grows: look for maximize, or a sign."
        return _UPDATES.failed("uphill", cause)
    if not steps.unchanged:
        cause = "With a learning rate of 0 the weights change: the schedule does not reach the optimizers' groups."
        return _UPDATES.failed("they change with a learning rate of 0", cause)
    if steps.decayed:
        cause = f"Weight decay is applied to {listed(steps.decayed)}: it is for matrices, not for norms and biases."
        return _UPDATES.warned("norms or biases decay", cause)
    return _UPDATES.passed(f"{len(steps.gradient)} parameters")
