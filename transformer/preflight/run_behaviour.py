"""Checks of what surrounds the steps of a run: tied weights, dropout, validation, resuming."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from transformer.hub import checkpoint
from transformer.preflight.check import Check, Expected
from transformer.preflight.small_run import (
    DROPOUT,
    output_folder,
    parameters_of,
    small_batches,
    small_model,
    small_train_step,
    small_trainer,
)
from transformer.preflight.subject import Subject
from transformer.training.trainer import Trainer

_CLOSE = {True: 0.01, False: 2e-4}  # of a validation loss, by whether the run multiplies in bf16


def tied(subject: Subject) -> Check:
    """Embedding and vocabulary projection are one matrix if that is configured, also after a step."""
    configured = subject.model.config.tie_embeddings
    expected = Expected("one matrix (tie_embeddings)" if configured else "two matrices (no tie_embeddings)")
    model = small_model(subject)
    small_train_step(subject, model, small_batches(subject, model)).run(1)
    for what, one in (("the model of the run", subject.model), ("a model after a step", model)):
        if (one.head.weight is one.token_embedding.weight) != configured:
            apart = "are two matrices" if configured else "are one matrix"
            cause = f"Of {what} the token embedding and the vocabulary projection {apart}: look at tie_embeddings."
            return expected.failed(apart, cause)
    return expected.passed("as configured")


def dropout(subject: Subject) -> Check:
    """Dropout is drawn again in each step, the same again for the same step, and absent in evaluation mode."""
    p = subject.model.config.dropout
    expected = Expected("another in each step, the same for the same step, none in evaluation mode")
    if not p:
        return expected.passed("none")
    model = small_model(subject, dropout=max(p, DROPOUT))
    batches = small_batches(subject, model)[:1]
    train_step = small_train_step(subject, model, batches)

    def loss_of(training: bool, seed: int) -> float:
        torch.manual_seed(seed)
        train_step.module.train(training)
        with torch.set_grad_enabled(training):
            return float(train_step.summed_loss(batches[0]).detach())

    if not _alike(loss_of(False, 0), loss_of(False, 1)):
        cause = "In evaluation mode the same tokens give another loss each time: dropout is not switched off."
        return expected.failed("drawn in evaluation mode", cause)
    if _alike(loss_of(True, 0), loss_of(True, 1)):
        cause = f"In training mode nothing is dropped, though dropout is {p:g}: look at Dropout and model.train()."
        return expected.failed("none in training mode", cause)
    losses = []
    for number in (1, 2, 1):
        again = small_model(subject, dropout=max(p, DROPOUT))
        losses.append(small_train_step(subject, again, batches).run(number).loss)
    if not _alike(losses[0], losses[2]):
        cause = "The same step drops other numbers each time, also in a resumed run: seed each step by its number."
        return expected.failed("not the same for the same step", cause)
    if _alike(losses[0], losses[1]):
        return expected.failed("the same in each step", "Every step drops the same: seed each step by its number.")
    return expected.passed(f"{p:g}")


def evaluation(subject: Subject) -> Check:
    """Validation is made in evaluation mode, is the mean over all targets, and leaves the model in training mode."""
    expected = Expected("the mean over all its targets, without dropout, and training goes on")
    dropout = subject.model.config.dropout
    model = small_model(subject, dropout=dropout or DROPOUT)
    batches = small_batches(subject, model)
    modes: list[bool] = []
    with output_folder() as folder, small_trainer(subject, model, batches, batches, folder) as trainer:
        handle = model.layers[0].register_forward_hook(lambda module, *_: modes.append(module.training))
        found = trainer.validation_loss()
        handle.remove()
        was_training = model.training
    train_step = small_train_step(subject, model.eval(), batches)
    counts = [batch.n_targets for batch in batches]
    with torch.no_grad():
        losses = [float(train_step.summed_loss(batch)) for batch in batches]
    wanted = sum(losses) / sum(counts)
    if any(modes):
        cause = "Validation runs in training mode, so that dropout changes the loss: call model.eval() before it."
        return expected.failed("in training mode", cause, certain=bool(dropout))
    if not was_training:
        cause = "After a validation the model stays in evaluation mode: call model.train(), or nothing drops out."
        return expected.failed("training goes on in evaluation mode", cause, certain=bool(dropout))
    if not abs(found - wanted) <= _CLOSE[subject.bf16] * wanted:
        means = sum(one / count for one, count in zip(losses, counts, strict=True)) / len(counts)
        is_mean_of_means = abs(found - means) < 1e-3 * means
        why = "it is the mean of the batches' means" if is_mean_of_means else "other targets are counted"
        cause = f"The validation loss is {found:.4f} where its targets give {wanted:.4f}: {why}."
        return expected.failed(f"{found:.4f} instead of {wanted:.4f}", cause)
    return expected.passed(f"{found:.4f}, by hand {wanted:.4f}")


def resumed(subject: Subject) -> Check:
    """A run that goes on from its checkpoint has the weights, optimizer state and position of the one that wrote it."""
    expected = Expected("a run from a checkpoint goes on as the one that wrote it")
    with output_folder() as folder:
        # The second run has other initial weights, and has to load those of the first.
        first, second = (_run_small_training(subject, folder, seed) for seed in (0, 1))
        saved = parameters_of(checkpoint.load_model(folder))
    if difference := next(_differences(first, second, saved), None):
        return expected.failed(*difference)
    return expected.passed(f"{len(saved)} tensors and the next step are the same")


def _run_small_training(subject: Subject, folder: str, seed: int) -> Trainer:
    """Train a small model in `folder`, or resume the training there; the trainer at the end."""
    model = small_model(subject, dropout=subject.model.config.dropout, seed=seed)
    batches = small_batches(subject, model)
    silent = small_trainer(subject, model, batches, batches[:1], folder, gradient_accumulation_steps=2)
    # In a thread of its own, where a run ignores signals: one that asks to stop is for the real run.
    with silent as trainer, ThreadPoolExecutor(1) as thread:
        thread.submit(trainer.run).result()
    return trainer


def _differences(first: Trainer, second: Trainer, saved: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """How a resumed run differs from the one that wrote the checkpoint, or the saved model from it, and the cause."""
    if second.progress.step != first.progress.step:
        yield "it begins again", "A run does not go on from its checkpoint: look at how it is loaded."
    weights, loaded = parameters_of(first.model), parameters_of(second.model)
    if other := [name for name, value in weights.items() if not torch.equal(value, loaded[name])]:
        cause = f"A run that goes on has another {other[0]} than the checkpoint: look at run_state.set_state_dict."
        yield "other weights", cause
    if first.source.state_dict() != second.source.state_dict():
        cause = "A run that goes on reads its text from another position: look at the load_state_dict of the source."
        yield "another position in the text", cause
    states = ([_state_of(optimizer) for optimizer in run.optimizers] for run in (first, second))
    for left, right in zip(*states, strict=True):
        if len(left) != len(right) or not all(map(torch.equal, left, right)):
            cause = "A run that goes on begins with another optimizer state: its moments are not saved or not restored."
            yield "another optimizer state", cause
    if other := [name for name, value in saved.items() if not _same(value, weights[name])]:
        cause = f"The saved model has another {other[0]} than the one that was trained: look at checkpoint.save."
        yield "another model is saved", cause
    for run in (first, second):
        run.train_step.run(first.progress.step + 1)
    loaded = parameters_of(second.model)
    if not all(_same(value, loaded[name]) for name, value in parameters_of(first.model).items()):
        cause = "The step after a checkpoint differs from that without stopping: it depends on more than its number."
        yield "another next step", cause


def _alike(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-5)


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left.float(), right.float(), rtol=1e-4, atol=1e-6)


def _state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of an optimizer's state, in the order of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = [optimizer.state[p] for p in parameters if p in optimizer.state]
    return [value.cpu() for entry in entries for _, value in sorted(entry.items()) if isinstance(value, Tensor)]
