"""A small model, a few batches and a short configuration, with which the run's own step and trainer are tried."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer.data.batches import Batch
from transformer.model import Transformer
from transformer.preflight import probe
from transformer.preflight.subject import FixedBatches, Subject, set_dropout
from transformer.training.distributed import Engine
from transformer.training.step import Stepper
from transformer.training.train_config import TrainConfig
from transformer.training.trainer import Trainer

_LENGTH = 12  # tokens in a row
_RATE = 1e-3
DROPOUT = 0.25  # where the run has none, so that it can be told whether it is switched on
_OF_THE_RUN = ("data", "optimizer", "precision", "separate_documents", "seed")


def small_model(subject: Subject, dropout: float = 0.0, seed: int = 0) -> Transformer:
    """In training mode on the device of the run."""
    model = probe.small_model(subject.model, subject.model.config.vocab_size, _LENGTH, seed)
    set_dropout(model, dropout)
    return model.to(subject.engine.device).train()


def small_batches(subject: Subject, model: Transformer) -> list[Batch]:
    """As many as two steps of three batches take, with different numbers of targets."""
    length, known = model.config.context_length, min(model.config.vocab_size, subject.tokenizer.vocab_size)
    config = replace(model.config, vocab_size=known)
    rows = [(2, 1), (1, 2), (3, 3), (1, 1), (2, 2), (2, 1)]
    return [probe.batch_of(config, n, length, seed, every) for seed, (n, every) in enumerate(rows)]


def small_stepper(subject: Subject, model: Transformer, batches: Sequence[Batch], **options: Any) -> Stepper:
    """The step of such a run."""
    engine = Engine(subject.engine.device)
    return Stepper(model, FixedBatches(batches), subject.tokenizer, _config(subject, **options), engine)


@contextmanager
def small_trainer(
    subject: Subject, model: Transformer, batches: Sequence[Batch], validation: list[Batch], folder: str, **options: Any
) -> Iterator[Trainer]:
    """The trainer of such a run of two steps; within it nothing is logged or displayed."""
    config, engine = _config(subject, output=folder, **options), Engine(subject.engine.device)
    logger = logging.getLogger("transformer")
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # which is no terminal: no progress bar
            yield Trainer(model, subject.tokenizer, FixedBatches(batches), validation, config, engine)
    finally:
        logger.disabled = before


def _config(subject: Subject, **options: Any) -> TrainConfig:
    """Two steps with the run's optimizer and precision, a constant learning rate, and no other choices."""
    taken = {name: value for name, value in subject.config.options().items() if name in _OF_THE_RUN}
    constant = dict(learning_rate=_RATE, schedule="linear", warmup_ratio=0.0, final_learning_rate=1.0)
    fixed = dict(constant, output="", max_steps=2, validate_every=2, max_loss=1e30)
    return TrainConfig.from_options(**{**taken, **fixed, **options})


@contextmanager
def output_folder() -> Iterator[str]:
    """A folder for a run, which is removed after it."""
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        yield str(Path(folder) / "run")


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of an optimizer's state, in the order of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = [optimizer.state[p] for p in parameters if p in optimizer.state]
    return [value.cpu() for entry in entries for _, value in sorted(entry.items()) if isinstance(value, Tensor)]
