"""Do the steps of a run do what they should? Its own `Stepper`, `Trainer` and optimizers train a small model.

Gradients are compared with those that autograd gives for the same batches at once, and a run that goes on from its
checkpoint with one that was never stopped. All of this is a matter of the code, not of the size of the model.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.hub import checkpoint
from transformer.model import Transformer
from transformer.preflight import probe
from transformer.preflight.check import Check, Verdict
from transformer.preflight.subject import Alone, Subject
from transformer.training import trainer
from transformer.training.optimizers import set_learning_rate
from transformer.training.step import Stepper
from transformer.training.train_config import TrainConfig

_LENGTH = 12  # tokens in a row
_ACCUMULATED = 3  # batches in a step
_RATE = 1e-3
_CLIP = 1e-2  # small enough to be met
_CLOSE = {True: 0.05, False: 1e-3}  # of the norm of a gradient, by whether the run multiplies in bf16
_DROPOUT = 0.25  # where the run has none, so that it can be seen whether it is switched on


class Listed:
    """A source that gives these batches in turn."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.taken = batches, 0

    @property
    def steps_in_epoch(self) -> int:
        return len(self.batches)

    def next(self) -> Batch:
        self.taken += 1
        return self.batches[(self.taken - 1) % len(self.batches)]

    def set_progress(self, progress: float) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]

    def describe_last(self) -> str:
        return "a batch of the preflight"


class NoUpdateError(Exception):
    """A step of the run did not call its optimizer."""


class Gradients:
    """What the first optimizer found in the parameters at each of its steps."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.seen = model, list[dict[str, Tensor]]()
        optimizer.register_step_pre_hook(lambda *_: self.seen.append(gradients_of(model)))


@dataclass(frozen=True)
class Steps:
    """Two steps of the run with accumulation, then one with clipping and one with a learning rate of 0.

    found, expected: gradients of the first two, by the run and by hand. before, after: parameters around the first.
    clipped: the norm of the third. stood_still: whether the last changed nothing.
    """

    batches: list[Batch]
    found: list[Tensor]
    expected: list[Tensor]
    parts: list[Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    gradient: dict[str, Tensor]
    clipped: float
    stood_still: bool
    groups: list[str]
    close: float


def not_updated() -> Check:
    """What is said of steps that raise NoUpdateError."""
    cause = "A step does not call its optimizer, so that nothing is learned: look at Stepper.step."
    return Check("updates", "the optimizer is not called", "every parameter with a gradient moves", "fail", cause)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients, by the parameter's name."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def steps(subject: Subject) -> Steps:
    """Make the steps that the checks of this module look at."""
    model = _model(subject, dropout=0.0)
    batches = _batches(subject, model)
    options = dict(gradient_accumulation_steps=_ACCUMULATED, max_grad_norm=float("inf"))
    stepper = _stepper(subject, model, batches, **options)
    seen = Gradients(model, stepper.optimizers[0])
    set_learning_rate(stepper.optimizers, 1.0)
    before = _copy(model)
    found, expected, parts = [], [], []
    after: dict[str, Tensor] = {}
    for number in range(2):
        learned = batches[number * _ACCUMULATED : (number + 1) * _ACCUMULATED]
        by_part = [_by_hand(stepper, model, [batch], learned) for batch in learned]
        expected.append(_flat(_sum(by_part), model))
        parts += [_flat(one, model) for one in by_part]
        model.train()
        stepper.step(number + 1)
        if len(seen.seen) != number + 1:
            raise NoUpdateError
        found.append(_flat(seen.seen[-1], model))
        after = after or _copy(model)
    clipping = _stepper(subject, model, batches, gradient_accumulation_steps=1, max_grad_norm=_CLIP)
    clipped = Gradients(model, clipping.optimizers[0])
    set_learning_rate(clipping.optimizers, 0.0)
    model.zero_grad()
    still = _copy(model)
    clipping.step(3)
    stood_still = all(torch.equal(value, still[name]) for name, value in _copy(model).items())
    decayed = [
        name
        for optimizer in stepper.optimizers
        for group in optimizer.param_groups
        if group.get("weight_decay")
        for name, p in model.named_parameters()
        if p.dim() < 2 and any(p is one for one in group["params"])
    ]
    return Steps(
        batches,
        found,
        expected,
        parts,
        before,
        after,
        seen.seen[0],
        float(_flat(clipped.seen[-1], model).norm()),
        stood_still,
        decayed,
        _CLOSE[subject.bf16 or subject.engine.device.type != "cpu"],
    )


def accumulation(steps: Steps) -> Check:
    """The gradient of a step of several batches is that of the mean over all their targets."""
    name, expected = "accumulated gradients", "the gradient of the mean over all targets of the step"
    found, wanted = steps.found[0], steps.expected[0]
    distance = _distance(found, wanted)
    if distance <= steps.close:
        return Check(name, f"{distance:.1e} apart, for {_ACCUMULATED} batches", expected)
    ratio = float(found @ wanted / (wanted @ wanted))
    n_targets = [int((batch.targets != IGNORE_INDEX).sum()) for batch in steps.batches[:_ACCUMULATED]]
    total = sum(n_targets)
    if _distance(found, ratio * wanted) <= steps.close:
        cause = (
            f"The gradient of a step of {_ACCUMULATED} batches is {ratio:.3g} times that of the mean over its targets"
        )
        for factor, why in (
            (_ACCUMULATED, "the batches are not divided by their number"),
            (1 / _ACCUMULATED, "it is divided by the number of batches a second time"),
            (total, "the sum over the targets is not divided by their number"),
            (1 / total, "it is divided by the number of targets a second time"),
        ):
            if abs(ratio / factor - 1) < 0.05:
                return Check(name, f"{ratio:.3g} times", expected, "fail", f"{cause}: {why}.")
        return Check(name, f"{ratio:.3g} times", expected, "fail", f"{cause}.")
    parts = steps.parts[:_ACCUMULATED]
    shares = [total / count for count in n_targets]
    means = [share * one for share, one in zip(shares, parts, strict=True)]
    summed = torch.stack(means).sum(dim=0)
    for other, why in (
        (parts[-1], "only the last batch of a step reaches the optimizer: gradients are set to zero between batches"),
        (means[-1], "only the last batch of a step reaches the optimizer"),
        (parts[0], "only the first batch of a step is learned from"),
        (summed, "each batch is divided by its own targets, and they are summed without dividing by their number"),
        (summed / _ACCUMULATED, "each batch counts the same, however many targets it has (the mean of means)"),
    ):
        if _distance(found, other) <= steps.close:
            return Check(name, "other batches, or other weights for them", expected, "fail", f"In a step {why}.")
    cause = "The gradient that reaches the optimizer is not that of the batches of the step: look at Stepper.step."
    return Check(name, f"{distance:.2g} apart, by its size", expected, "fail", cause)


def zeroed(steps: Steps) -> Check:
    """The second step does not see the gradient of the first."""
    name, expected = "gradients between steps", "none is left of the step before"
    found, wanted = steps.found[1], steps.expected[1]
    if _distance(found, wanted) <= steps.close:
        return Check(name, "none", expected)
    # What is left of the first may be its sum with this one, whatever the first was multiplied by.
    if _distance(found - wanted, steps.found[0]) <= steps.close * max(
        1.0, float(wanted.norm() / steps.found[0].norm())
    ):
        cause = "A step adds its gradient to that of the step before: zero_grad is missing after the update."
        return Check(name, "that of the step before", expected, "fail", cause)
    if _distance(steps.found[0], steps.expected[0]) > steps.close:
        return Check(name, "not known: the first step has another gradient too", expected)
    cause = "The gradient of the second step is not that of its batches, though the first one's was."
    return Check(name, "something else", expected, "fail", cause)


def clipping(steps: Steps) -> Check:
    """The gradient is made as short as --max-grad-norm says before the optimizer sees it."""
    name, expected = "clipping", "the gradient is as long as --max-grad-norm allows, if it was longer"
    ratio = steps.clipped / _CLIP
    if abs(ratio - 1) < 0.05:
        return Check(name, "it is", expected)
    cause = (
        f"With a clip of {_CLIP} the optimizer is given a gradient of norm {steps.clipped:.3g}: clip it, once, before."
    )
    return Check(name, f"{ratio:.3g} times as long", expected, "fail", cause)


def updated(steps: Steps) -> Check:
    """The optimizers move every parameter that has a gradient, downhill, as far as the learning rate says."""
    name, expected = "updates", "every parameter with a gradient moves downhill, and none with a learning rate of 0"
    moves = {key: steps.after[key] - steps.before[key] for key in steps.before}
    still = [key for key, gradient in steps.gradient.items() if gradient.any() and not moves[key].any()]
    if still:
        shown = ", ".join(still[:3]) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
        cause = f"A step does not change {shown}: the optimizers were not given it, or do not make their step."
        return Check(name, f"{len(still)} of {len(moves)} parameters stand still", expected, "fail", cause)
    slope = sum(float((moves[key].double() * gradient.double()).sum()) for key, gradient in steps.gradient.items())
    if not slope < 0:
        return Check(name, "uphill", expected, "fail", "A step goes up the gradient: the loss grows by it.")
    if not steps.stood_still:
        cause = "With a learning rate of 0 the weights change: the schedule does not reach the optimizers' groups."
        return Check(name, "they change with a learning rate of 0", expected, "fail", cause)
    if steps.groups:
        cause = (
            f"Weight decay is applied to {', '.join(steps.groups[:3])}: it is for matrices, not for norms and biases."
        )
        return Check(name, "norms or biases decay", expected, "warn", cause)
    return Check(name, f"{len(steps.gradient)} parameters", expected)


def tied(subject: Subject) -> Check:
    """Embedding and vocabulary projection are one matrix if that is configured, also after a step and a checkpoint."""
    name = "tied weights"
    configured = subject.model.config.tie_embeddings
    expected = "one matrix (tie_embeddings)" if configured else "two matrices (no tie_embeddings)"
    model = _model(subject, dropout=0.0)
    batches = _batches(subject, model)
    _stepper(subject, model, batches, gradient_accumulation_steps=1).step(1)
    for what, one in (("the model of the run", subject.model), ("a model after a step", model)):
        are_one = one.head.weight is one.token_embedding.weight
        if are_one != configured:
            apart = "come apart" if configured else "are one"
            cause = f"Of {what} the token embedding and the vocabulary projection {apart}: look at tie_embeddings."
            return Check(name, apart, expected, "fail", cause)
    return Check(name, "as configured", expected)


def evaluation(subject: Subject) -> Check:
    """Validation is made in evaluation mode, is the mean over all targets, and leaves the model training."""
    name, expected = "validation", "the mean over all its targets, without dropout, and training goes on"
    dropout = subject.model.config.dropout
    model = _model(subject, dropout=dropout or _DROPOUT)
    batches = _batches(subject, model)
    with _folder() as folder, _quiet():
        run = trainer.Trainer(
            model.train(), subject.tokenizer, Listed(batches), batches, _config(subject, folder), _lone(subject)
        )
        modes: list[bool] = []
        handle = model.layers[0].register_forward_pre_hook(lambda module, _: modes.append(module.training))
        found = run.validation_loss()
        handle.remove()
    was_training = model.training
    stepper = _stepper(subject, model.eval(), batches)
    with torch.no_grad():
        counts = [int((batch.targets != IGNORE_INDEX).sum()) for batch in batches]
        nats = [float(stepper.nats(batch, stepper.module)) for batch in batches]
    wanted = sum(nats) / sum(counts)
    if any(modes):
        verdict: Verdict = "fail" if dropout else "warn"
        cause = "Validation runs in training mode, so that dropout disturbs what is measured: call model.eval() before."
        return Check(name, "in training mode", expected, verdict, cause)
    if not was_training:
        cause = "After a validation the model stays in evaluation mode, so that the rest of the run has no dropout."
        return Check(name, "training ends in evaluation mode", expected, "fail" if dropout else "warn", cause)
    if not abs(found - wanted) <= _CLOSE[subject.bf16] / 5 * wanted:
        means = sum(one / count for one, count in zip(nats, counts, strict=True)) / len(counts)
        why = (
            "it is the mean of the batches' means" if abs(found - means) < 1e-3 * means else "other targets are counted"
        )
        cause = f"The validation loss is {found:.4f} where its targets give {wanted:.4f}: {why}."
        return Check(name, f"{found:.4f} instead of {wanted:.4f}", expected, "fail", cause)
    return Check(name, f"{found:.4f}, by hand {wanted:.4f}", expected)


def dropout(subject: Subject) -> Check:
    """Dropout is drawn again in each step, the same again for the same step, and absent in evaluation mode."""
    name, p = "dropout", subject.model.config.dropout
    expected = "another in each step, the same for the same step, none in evaluation mode"
    if not p:
        return Check(name, "none", expected)
    model = _model(subject, dropout=max(p, _DROPOUT))
    batches = _batches(subject, model)[:1]
    stepper = _stepper(subject, model, batches)

    def nats(training: bool, seed: int) -> float:
        torch.manual_seed(seed)
        with torch.set_grad_enabled(training):
            return float(stepper.nats(batches[0], model_loss(training)).detach())

    def model_loss(training: bool) -> nn.Module:
        stepper.module.train(training)
        return stepper.module

    if not _alike(nats(False, 0), nats(False, 1)):
        cause = "In evaluation mode the same tokens give another loss each time: dropout is not switched off."
        return Check(name, "drawn in evaluation mode", expected, "fail", cause)
    if _alike(nats(True, 0), nats(True, 1)):
        cause = f"In training mode nothing is dropped, though dropout is {p:g}."
        return Check(name, "none in training mode", expected, "fail", cause)
    losses = []
    for number in (1, 2, 1):
        again = _stepper(subject, _model(subject, dropout=max(p, _DROPOUT)), batches, gradient_accumulation_steps=1)
        losses.append(again.step(number).loss)
    if not _alike(losses[0], losses[2]):
        cause = "The same step drops other numbers each time, so that a run that goes on ends with other weights."
        return Check(name, "not the same for the same step", expected, "fail", cause)
    if _alike(losses[0], losses[1]):
        return Check(name, "the same in each step", expected, "fail", "Every step drops the same numbers.")
    return Check(name, f"{p:g}", expected)


def resumed(subject: Subject) -> Check:
    """A run that goes on from its checkpoint has the weights, optimizer state and place of the one that wrote it."""
    name, expected = "resuming", "a run from a checkpoint goes on as the one that wrote it"

    def fail(measured: str, cause: str) -> Check:
        return Check(name, measured, expected, "fail", cause)

    with _folder() as folder, _quiet():
        runs = []
        for seed in (0, 1):  # the second begins with other weights, and has to find those of the first
            model = _model(subject, dropout=subject.model.config.dropout, seed=seed)
            batches = _batches(subject, model)
            config = _config(subject, folder, gradient_accumulation_steps=2)
            runs.append(
                trainer.Trainer(model.train(), subject.tokenizer, Listed(batches), batches[:1], config, _lone(subject))
            )
            # In a thread of its own, where a run leaves signals alone: one that asks to stop is for the real run.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(runs[-1].run).result()
        first, second = runs
        saved = checkpoint.load_model(folder)
    if second.progress.step != first.progress.step:
        return fail("it begins again", "A run with a checkpoint does not go on from it: it begins with step 1.")
    weights, again = _copy(first.model), _copy(second.model)
    if other := [key for key, value in weights.items() if not torch.equal(value, again[key])]:
        return fail(
            "other weights", f"A run that goes on has another {other[0]} than the one that wrote the checkpoint."
        )
    if first.source.state() != second.source.state():
        return fail(
            "another place in the text", "A run that goes on reads its text from another place: look at restore."
        )
    for one, two in zip(first.optimizers, second.optimizers, strict=True):
        pairs = zip(_state(one), _state(two), strict=False)
        if len(_state(one)) != len(_state(two)) or any(not torch.equal(left, right) for left, right in pairs):
            cause = "A run that goes on begins with another optimizer state: its moments are not saved or not restored."
            return fail("another optimizer state", cause)
    if other := [key for key, value in _copy(saved).items() if not _same(value, weights[key])]:
        cause = (
            f"The model that is saved has another {other[0]} than the one that was trained: look at checkpoint.save."
        )
        return fail("another model is saved", cause)
    for run in runs:
        run.stepper.step(first.progress.step + 1)
    weights, again = _copy(first.model), _copy(second.model)
    if any(not _same(value, again[key]) for key, value in weights.items()):
        cause = "The step after a checkpoint is another than without stopping: it depends on more than its number."
        return fail("another next step", cause)
    return Check(name, f"{len(weights)} tensors and the next step are the same", expected)


# ---- what the checks share ----


def _model(subject: Subject, dropout: float, seed: int = 0) -> Transformer:
    model = probe.small_model(subject.model, subject.model.config.vocab_size, _LENGTH, seed)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model.to(subject.engine.device).train()


def _batches(subject: Subject, model: Transformer) -> list[Batch]:
    """As many as two steps take, with different numbers of targets."""
    length, known = model.config.context_length, min(model.config.vocab_size, subject.tokenizer.vocab_size)
    config = replace(model.config, vocab_size=known)
    rows = [(2, 1), (1, 2), (3, 3), (1, 1), (2, 2), (2, 1)]
    return [probe.batch_of(config, n, length, seed, every) for seed, (n, every) in enumerate(rows)]


def _config(subject: Subject, folder: str = "", **options: Any) -> TrainConfig:
    """A run of two steps with the run's optimizer and precision, a constant learning rate, and no other choices."""
    config = subject.config
    taken = {name: config.options()[name] for name in ("data", "optimizer", "precision", "separate_documents", "seed")}
    constant = dict(learning_rate=_RATE, schedule="linear", warmup_ratio=0.0, final_learning_rate=1.0)
    fixed = dict(constant, max_steps=2, validate_every=2)
    return TrainConfig.from_options(**{**taken, **fixed, "output": folder, "max_loss": 1e30, **options})


def _lone(subject: Subject) -> Alone:
    return Alone(subject.engine.device)


def _stepper(subject: Subject, model: Transformer, batches: Sequence[Batch], **options: Any) -> Stepper:
    engine, config = _lone(subject), _config(subject, **options)
    module = engine.prepare(trainer.LanguageModelLoss(model, subject.bf16))
    return trainer.Stepper(
        module, trainer.make_optimizers(model, config), Listed(batches), subject.tokenizer, config, engine
    )


def _by_hand(stepper: Stepper, model: Transformer, batches: list[Batch], of_step: list[Batch]) -> dict[str, Tensor]:
    """The gradient of the nats of these batches by the number of targets of the step, without touching `grad`."""
    n_targets = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in of_step)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    nats = torch.stack([stepper.nats(batch, stepper.module) for batch in batches]).sum() / n_targets
    gradients = torch.autograd.grad(nats, [p for _, p in named], allow_unused=True)
    return {name: g for (name, _), g in zip(named, gradients, strict=True) if g is not None}


def _sum(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = {name for one in parts for name in one}
    return {name: sum((one[name] for one in parts if name in one), torch.zeros(())) for name in names}


def _flat(gradients: dict[str, Tensor], model: nn.Module) -> Tensor:
    """All gradients in one vector, in fp64 on the CPU; 0 where a parameter has none."""
    return torch.cat(
        [
            gradients[name].detach().cpu().double().flatten() if name in gradients else torch.zeros(p.numel()).double()
            for name, p in model.named_parameters()
        ]
    )


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of an optimizer's state, in the order of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = [optimizer.state[p] for p in parameters if p in optimizer.state]
    return [value.cpu() for entry in entries for _, value in sorted(entry.items()) if isinstance(value, Tensor)]


def _distance(found: Tensor, wanted: Tensor) -> float:
    distance = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
    return distance if math.isfinite(distance) else math.inf


def _alike(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-5)


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left.float(), right.float(), rtol=1e-4, atol=1e-6)


@contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        yield str(Path(folder) / "run")


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it the small run does not report its steps."""
    logger = logging.getLogger("transformer")
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # which is no terminal: no progress bar
            yield
    finally:
        logger.disabled = before


OF_STEPS: tuple[Callable[[Steps], Check], ...] = (accumulation, updated, zeroed, clipping)
