"""Checks of learning: the gradients of a step of the run, whether one batch is overfitted, and the learning rate."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.preflight.check import Check, Expected, listed
from transformer.preflight.measure import at_each_step
from transformer.preflight.subject import Subject, cut
from transformer.training.optimizers import set_learning_rate
from transformer.training.step import Diverged, TrainStep

_BEYOND = 2**40  # the first step number here: the random numbers of the run's own steps are not used
_ROWS, _LENGTH = 4, 32  # of the batch that is overfitted
_MOST_STEPS = 80
_LEAST_STEPS = 20  # with fewer nothing is said
_PART = 0.6  # of the entropy of its tokens: a loss below that needs more than their frequencies
_SMALL = 0.5  # nats per token: nothing is left to learn
_RATES = {"pre": 3e-3, "post": 1e-3, "reordered": 3e-3, "sandwich": 3e-3}  # of AdamW, to overfit a batch
_SECONDS = 20.0  # of processor time that overfitting, or the range test, may take at most
_LOWEST, _HIGHEST, _N_RATES = 1e-5, 10.0, 31  # learning rates of the range test
_MOVED = 0.02  # of the initial loss: it falls
_DIVERGED = 0.25  # of the initial loss above the best so far: it diverges
_MARGIN = 2.0  # times the chosen rate are tried, to see that the loss does not diverge
_FAR = 100.0  # times below the rate at which the loss falls
_HOPELESS = 10.0  # times above the rate at which the loss diverges
_SLOW = 1.0  # seconds of a step: one is then enough
_MANY = 32  # targets, of which some have something before them


@dataclass(frozen=True)
class RealStep:
    """A step of the run. tokens: its targets. norm: of its gradient. names: of parameters whose gradients are wrong, by
    what is wrong with them."""

    seconds: float
    tokens: int
    norm: float
    names: dict[str, list[str]]


def real_step(subject: Subject) -> RealStep:
    """Two steps of a whole batch on a copy of the model, with a very low learning rate; the time is that of the faster.

    Behind layers whose outputs start at zero (start_from_bigrams) the gradients of the first step are zero: those of
    the second count.
    """
    model = subject.copy_of_model()
    train_step = subject.make_train_step(model, subject.fullest, learning_rate=_LOWEST, embedding_learning_rate=None)
    names = at_each_step(train_step.optimizers[0], lambda: _wrong_gradients(model))
    seconds: list[float] = []
    while len(seconds) < 2:
        begin = time.perf_counter()
        step = train_step.run(_BEYOND + len(seconds))
        seconds.append(time.perf_counter() - begin)
        if "zero" not in names[0] and seconds[0] > _SLOW:
            break
    return RealStep(min(seconds), step.tokens, step.gradient_norm, names[-1])


def _wrong_gradients(model: nn.Module) -> dict[str, list[str]]:
    """Names of parameters by what is wrong with their gradients.

    Without rotary positions the gradient of the keys' bias is zero: it adds the same to all scores of a query.
    """
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if not parameter.requires_grad:
            found.setdefault("switched off", []).append(name)
        elif gradient is None:
            found.setdefault("absent", []).append(name)
        elif not torch.isfinite(gradient).all():
            found.setdefault("not finite", []).append(name)
        elif not gradient.any() and not name.endswith("attention.key.bias"):
            found.setdefault("zero", []).append(name)
    return found


def gradients(subject: Subject) -> Check:
    """Every parameter that is trained has a finite gradient that is not zero."""
    count, step = sum(1 for _ in subject.model.parameters()), subject.once(real_step)
    expected, frozen = Expected("finite and not zero for every parameter"), step.names.get("switched off", [])
    asked = ["token_embedding.weight"] if subject.config.model.freeze_embeddings else []
    found = {**step.names, "switched off": [name for name in frozen if name not in asked]}
    for what, cause in (
        ("not finite", "the loss overflows in this precision: try --precision fp32"),
        ("absent", "the loss does not depend on it: it is not connected"),
        ("zero", "nothing that it does reaches the loss: it is cut off, or its unit is dead"),
        ("switched off", "it is frozen though no option says so: requires_grad is False"),
    ):
        if names := found.get(what):
            certain = what != "zero" or (step.tokens >= _MANY and not subject.trained)
            measured = f"{what} in {len(names)} of {count} parameters"
            return expected.failed(measured, f"The gradient of {listed(names)} is {what}: {cause}.", certain)
    as_asked = f"; frozen as asked: {', '.join(frozen)}" if frozen else ""
    return expected.passed(f"{count - len(frozen)} parameters, norm {step.norm:.3g}{as_asked}")


def one_batch(subject: Subject) -> Check:
    """A few rows can be overfitted: the loss falls far below the entropy of their tokens."""
    batch = cut(subject.fullest, _ROWS, _LENGTH)
    entropy, least = _entropies(batch)
    goal = max(least + _PART * (entropy - least), _SMALL)
    expected = Expected(f"below {goal:.2f}, the entropy of its tokens being {entropy:.2f}")
    rate = _RATES[subject.model.config.norm_placement]
    options = dict(optimizer="adamw", learning_rate=rate, embedding_learning_rate=None, weight_decay=0.0)
    train_step = subject.make_train_step(subject.copy_of_model(dropout=False), batch, **options)
    losses: list[float] = []
    for loss in _losses(train_step, [min(1.0, (number + 1) / 5) for number in range(_MOST_STEPS)]):
        losses.append(loss)
        if loss <= goal:
            break
    measured = f"from {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    if losses[-1] <= goal:
        return expected.passed(measured)
    if len(losses) < _LEAST_STEPS and math.isfinite(losses[-1]):
        return expected.passed(f"{measured}, which is as many as this machine makes in {_SECONDS:.0f} s")
    if not abs(losses[-1] - losses[0]) > _MOVED * losses[0]:
        cause = "The loss of a few rows does not change: the optimizer does not move weights (make_optimizers)."
        return expected.failed(measured, cause, certain=not subject.trained)
    cause = "The model cannot overfit a few rows: targets do not follow from inputs, a part is cut off, or it is tiny."
    return expected.warned(measured, cause)


def _entropies(batch: Batch) -> tuple[float, float]:
    """Nats per target if only its frequency is known, and if all tokens before it are: of rows that begin alike and go
    on differently, the difference cannot be learned."""
    inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
    learned = np.argwhere(targets != IGNORE_INDEX).tolist()
    by_past: dict[bytes, Counter[int]] = {}
    for row, place in learned:
        by_past.setdefault(inputs[row, : place + 1].tobytes(), Counter())[int(targets[row, place])] += 1
    total = sum(by_past.values(), Counter[int]())
    entropy, least = (
        -sum(n * math.log(n / counts.total()) for counts in groups for n in counts.values()) / max(1, len(learned))
        for groups in ([total], by_past.values())
    )
    return entropy, least


def rate(subject: Subject) -> Check:
    """The learning rate is above the lowest at which the loss falls, and below the lowest at which it diverges."""
    chosen = subject.config.optimization.learning_rate
    falls, diverges = _range_test(subject, cut(subject.fullest, _ROWS, 2 * _LENGTH))
    low = f"falls from {falls:.1g} on" if falls else "falls nowhere"
    high = f"diverges at {diverges:.1g}" if diverges else "does not diverge"
    expected = Expected(f"not {_FAR:.0f} times below the first, and below the second")
    measured, which = f"{chosen:.2g}; the loss {low} and {high}", f"The learning rate {chosen:.2g} is"
    if diverges and chosen >= diverges:
        cause = f"{which} far too high: in a range test the loss {high}; try {diverges / 10:.1g}."
        return expected.failed(measured, cause, certain=chosen >= _HOPELESS * diverges and not subject.trained)
    if falls and chosen < falls / _FAR:
        cause = f"{which} so low that nothing changes: in a range test the loss {low}; try that."
        return expected.warned(measured, cause)
    return expected.passed(measured)


def _range_test(subject: Subject, batch: Batch) -> tuple[float | None, float | None]:
    """The lowest learning rates at which the loss falls, and diverges; None: there is none up to twice the chosen rate.

    The rate grows by a factor from step to step (Smith, 2017, arXiv 1506.01186). Parameter groups keep their ratios.
    """
    train_step = subject.make_train_step(subject.copy_of_model(dropout=False), batch)
    chosen = subject.config.optimization.learning_rate
    rates = np.geomspace(_LOWEST, _HIGHEST, _N_RATES).tolist()
    falls: float | None = None
    first = best = math.inf
    for rate, loss in zip(rates, _losses(train_step, [rate / chosen for rate in rates]), strict=False):
        first, best = min(first, loss) if first == math.inf else first, min(best, loss)
        if falls is None and loss < first * (1 - _MOVED):
            falls = rate
        if not loss < best + _DIVERGED * max(first, 1.0):
            return falls, rate
        if falls is not None and rate > _MARGIN * chosen:
            break
    return falls, None


def _losses(train_step: TrainStep, rates: Sequence[float]) -> Iterator[float]:
    """The losses of steps with these learning rates (1: that of the run), until one is not finite or time is up."""
    begin = time.process_time()
    for number, rate in enumerate(rates):
        set_learning_rate(train_step.optimizers, rate)
        try:
            loss = train_step.run(_BEYOND + number).loss
        except Diverged:
            loss = math.inf
        yield loss
        if not math.isfinite(loss) or time.process_time() - begin > _SECONDS:
            return
