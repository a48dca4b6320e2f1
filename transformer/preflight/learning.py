"""Does it learn? A real step, one batch memorized, and the learning rate between too low and too high.

All of it by the run's own `Stepper` and optimizers, on copies of the model.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.preflight.check import Check, Verdict
from transformer.preflight.subject import Subject, cut
from transformer.training.optimizers import set_learning_rate
from transformer.training.step import Diverged, Stepper

_BEYOND = 2**40  # numbers of steps that no run reaches, so that nobody takes these for the run's own
_ROWS, _LENGTH = 4, 32  # of the batch that is memorized
_MOST_STEPS = 80
_LEAST_STEPS = 20  # after which it can be said that nothing is learned
_PART = 0.6  # of the entropy of its tokens: a loss below that took more than to count them
_SMALL = 0.5  # nats per token: nothing is left to learn
# Of AdamW, at which a batch is memorized; post-norm takes less.
_RATES = {"pre": 3e-3, "post": 1e-3, "reordered": 3e-3, "sandwich": 3e-3}
_SECONDS = 20.0  # of processor time that memorizing, or the range test, may take at most
_LOWEST, _HIGHEST, _PER_DECADE = 1e-5, 10.0, 5  # learning rates of the range test
_MOVED = 0.02  # of the loss at the beginning: it falls
_DIVERGED = 0.25  # of it above the best so far: it rises
_MARGIN = 2.0  # times the chosen rate are tried, to see that the loss does not explode
_FAR = 100.0  # times below the rate at which anything moves
_HOPELESS = 10.0  # times above the rate at which the loss explodes
_SLOW = 1.0  # seconds of a step: one is then enough
_MANY = 32  # targets, of which some have something before them to look at


@dataclass(frozen=True)
class RealStep:
    """A step of the run: seconds of the fastest, its targets, and the parameters whose gradients are wrong."""

    seconds: float
    tokens: int
    frozen: list[str]
    missing: list[str]
    infinite: list[str]
    zero: list[str]
    norm: float


def real_step(subject: Subject) -> RealStep:
    """Two real steps with a whole batch on a copy of the model, at a rate at which it hardly changes.

    A gradient that is zero in the first must not be in the second: layers whose outputs begin at zero
    (start_from_bigrams) give nothing back until they have moved.
    """
    model = subject.fresh()
    stepper = subject.stepper(model, subject.fullest, learning_rate=_LOWEST, embedding_learning_rate=None)
    looks: list[dict[str, list[str]]] = []

    def look(*_: object) -> None:
        if len(looks) < steps:
            looks.append(_look(model))

    stepper.optimizers[0].register_step_pre_hook(look)
    seconds, steps = [], 0
    while steps < 2:
        steps += 1
        begin = time.perf_counter()
        step = stepper.step(_BEYOND + steps)
        seconds.append(time.perf_counter() - begin)
        if not looks[-1]["zero"] and seconds[0] > _SLOW:
            break
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    found = looks[-1]
    return RealStep(
        min(seconds), step.tokens, frozen, found["missing"], found["infinite"], found["zero"], step.gradient_norm
    )


def gradients(subject: Subject, step: RealStep) -> Check:
    """Every parameter that is trained has a finite gradient that is not zero.

    Rows of the embedding whose token is not in the batch have none; and the bias of the keys has none by mathematics
    where positions are not rotary: it adds the same to all scores of a query, which the softmax takes away again.
    """
    count = sum(1 for _ in subject.model.parameters())
    name, expected = "gradients", "finite and not zero for every parameter"
    asked = ["token_embedding.weight"] if subject.config.model.freeze_embeddings else []
    frozen = [name for name in step.frozen if name not in asked]
    zero: Verdict = "fail" if step.tokens >= _MANY and not subject.trained else "warn"
    wrong: tuple[tuple[list[str], str, Verdict, str], ...] = (
        (
            step.infinite,
            "not finite",
            "fail",
            "the loss overflows in this precision: try --precision fp32, and look at the weights",
        ),
        (step.missing, "absent", "fail", "the loss does not depend on it: it is not connected"),
        (step.zero, "zero", zero, "nothing that it does reaches the loss: it is cut off, or its unit is dead"),
        (frozen, "switched off", "fail", "it is frozen though nobody asked for it: requires_grad is False"),
    )
    for names, what, verdict, cause in wrong:
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            cause = f"The gradient of {shown} is {what}: {cause}."
            return Check(name, f"{what} in {len(names)} of {count} parameters", expected, verdict, cause)
    measured = f"{count - len(step.frozen)} parameters, norm {step.norm:.3g}"
    if step.frozen:
        measured += f"; frozen as asked: {', '.join(step.frozen)}"
    return Check(name, measured, expected)


def one_batch(subject: Subject) -> Check:
    """A few rows can be memorized: the loss falls far below the entropy of their tokens.

    Rows that begin alike and go on differently cannot be told apart: what is left of the entropy then is not learned.
    """
    name = "overfit one batch"
    batch = cut(subject.fullest, _ROWS, _LENGTH)
    entropy, least = _entropies(batch)
    goal = max(least + _PART * (entropy - least), _SMALL)
    expected = f"below {goal:.2f}, the entropy of its tokens being {entropy:.2f}"
    rate = _RATES[subject.model.config.norm_placement]
    options = dict(optimizer="adamw", learning_rate=rate, embedding_learning_rate=None, weight_decay=0.0)
    stepper = subject.stepper(subject.fresh(dropout=False), batch, **options)
    losses: list[float] = []
    begin = time.process_time()
    while len(losses) < _MOST_STEPS and (not losses or losses[-1] > goal):
        set_learning_rate(stepper.optimizers, min(1.0, (len(losses) + 1) / 5))
        losses.append(_loss(stepper, len(losses)))
        if time.process_time() - begin > _SECONDS or not math.isfinite(losses[-1]):
            break
    measured = f"from {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"
    if losses[-1] <= goal or losses[0] <= goal:
        return Check(name, measured, expected)
    if len(losses) < _LEAST_STEPS and math.isfinite(losses[-1]):
        return Check(name, measured, f"{expected}; this machine takes too long to say")
    moved = abs(losses[-1] - losses[0]) > _MOVED * losses[0]
    if not moved:
        cause = "The loss of a few rows does not move at all: the optimizer does not reach the weights."
        return Check(name, measured, expected, "warn" if subject.trained else "fail", cause)
    cause = (
        "The model does not memorize even a few rows: targets that do not follow from the inputs, a branch that "
        "is cut off, or a model that is very small."
    )
    return Check(name, measured, expected, "warn", cause)


def _entropies(batch: Batch) -> tuple[float, float]:
    """Nats per target: of the targets by their counts, and by their counts among those with the same tokens before."""
    inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
    learned = np.argwhere(targets != IGNORE_INDEX)
    if not len(learned):
        return 0.0, 0.0
    every = Counter(int(targets[row, place]) for row, place in learned)
    entropy = -sum(count / len(learned) * math.log(count / len(learned)) for count in every.values())
    by_past: dict[bytes, Counter[int]] = {}
    for row, place in learned:
        past = inputs[row, : place + 1].tobytes()
        by_past.setdefault(past, Counter())[int(targets[row, place])] += 1
    least = 0.0
    for counts in by_past.values():
        total = sum(counts.values())
        least -= sum(count * math.log(count / total) for count in counts.values()) / len(learned)
    return entropy, least


def rate(subject: Subject) -> Check:
    """The learning rate lies between those at which nothing moves and at which the loss explodes.

    A range test (Smith, 2017, arXiv 1506.01186): the rate of each step is higher than the last one's by a factor, and
    the loss on one small batch is watched, until it is known on which side of them the chosen rate is. All groups keep
    their proportions.
    """
    name, chosen = "learning rate", subject.config.optimization.learning_rate
    moves, diverges = range_test(subject, cut(subject.fullest, _ROWS, 2 * _LENGTH))
    low = f"falls from {moves:.1g} on" if moves else "falls nowhere"
    high = f"explodes at {diverges:.1g}" if diverges else "does not explode"
    measured = f"{chosen:.2g}; the loss {low} and {high}"
    expected = f"not {_FAR:.0f} times below the first, and below the second"
    if diverges and chosen >= diverges:
        cause = (
            f"The learning rate {chosen:.2g} is far too high: in a range test the loss explodes at {diverges:.1g}; try "
            f"{diverges / 10:.1g}."
        )
        hopeless = chosen >= _HOPELESS * diverges and not subject.trained
        return Check(name, measured, expected, "fail" if hopeless else "warn", cause)
    if moves and chosen < moves / _FAR:
        cause = (
            f"The learning rate {chosen:.2g} is so low that nothing moves: in a range test the loss begins to fall at "
            f"{moves:.1g}; try that."
        )
        return Check(name, measured, expected, "warn", cause)
    return Check(name, measured, expected)


def range_test(subject: Subject, batch: Batch) -> tuple[float | None, float | None]:
    """The learning rates from which on the loss falls, and explodes; None: it did not up to where that matters."""
    stepper = subject.stepper(subject.fresh(dropout=False), batch)
    chosen = subject.config.optimization.learning_rate
    moves: float | None = None
    first = best = math.inf
    begin = time.process_time()
    number_of_rates = round(math.log10(_HIGHEST / _LOWEST) * _PER_DECADE) + 1
    for number, rate in enumerate(np.geomspace(_LOWEST, _HIGHEST, number_of_rates)):
        set_learning_rate(stepper.optimizers, rate / chosen)
        loss = _loss(stepper, number + 1)
        if number == 0:
            first = best = loss
        best = min(best, loss)
        if moves is None and loss < first * (1 - _MOVED):
            moves = float(rate)
        if not loss < best + _DIVERGED * max(first, 1.0):
            return moves, float(rate)
        if (moves is not None and rate > _MARGIN * chosen) or time.process_time() - begin > _SECONDS:
            break
    return moves, None


def _loss(stepper: Stepper, number: int) -> float:
    try:
        return stepper.step(_BEYOND + number).loss
    except Diverged:
        return math.inf


def _look(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters that are trained, by what is wrong with their gradients."""
    found: dict[str, list[str]] = {"missing": [], "infinite": [], "zero": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            found["missing"].append(name)
        elif not torch.isfinite(parameter.grad).all():
            found["infinite"].append(name)
        elif not parameter.grad.any() and not name.endswith("attention.key.bias"):
            found["zero"].append(name)
    return found
