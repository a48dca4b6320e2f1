"""A small model of the run's architecture, a few batches, and the run's own step and trainer for them.

The code is checked on this model: it is fast, and its weights are so large that a mistake in any part changes the
result. With new weights of the run, a missing factor would hardly change anything.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import ModelConfig, Transformer
from transformer.preflight.subject import FixedBatches, Subject
from transformer.training.distributed import Engine
from transformer.training.step import TrainStep
from transformer.training.train_config import TrainConfig
from transformer.training.trainer import Trainer

WINDOW = 300  # long enough for an attention kernel that works in blocks of 128 or 256
DROPOUT = 0.25  # where the run has none, so that it shows whether dropout is on
_LENGTH = 12  # tokens in a row of the batches
_OF_THE_RUN = ("data", "optimizer", "precision", "separate_documents", "seed")
_FIXED = dict(learning_rate=1e-3, schedule="linear", warmup_ratio=0.0, final_learning_rate=1.0, output="")


def small_model(
    subject: Subject, vocab_size: int = 0, length: int = _LENGTH, dropout: float = 0.0, seed: int = 0
) -> Transformer:
    """In training mode on the device of the run. vocab_size: 0 for that of the run."""
    model = subject.model
    config = _small_config(model.config, vocab_size or model.config.vocab_size, length)
    small, generator = type(model)(replace(config, dropout=dropout)), torch.Generator().manual_seed(seed)

    def draw(parameter: Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))

    embedding = config.d_model**-0.5 if config.scale_embeddings else 0.5
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "embedding" in name:
                draw(parameter, embedding if name.startswith("token") else 1.0)
            elif parameter.dim() > 1:
                draw(parameter, 1.2 / math.sqrt(parameter.shape[1]))
            elif name.endswith("bias"):
                draw(parameter, 0.3)
            else:
                draw(parameter, 0.2, 1.0)
    small.token_embedding.weight.requires_grad_(model.token_embedding.weight.requires_grad)
    return small.to(subject.engine.device).train()


def _small_config(config: ModelConfig, vocab_size: int, context_length: int) -> ModelConfig:
    """The architecture with all sizes reduced, and all other options the same."""
    n_kv_heads = min(config.kv_heads, 2)
    n_heads, head_dim = n_kv_heads * min(config.n_heads // config.kv_heads, 2), min(config.key_dim, 16)
    # Ratios of sizes that are usual stay so: not every format of the Hub can express others.
    width = n_heads * head_dim if config.d_model == config.n_heads * config.key_dim else min(config.d_model, 32)
    is_fourfold = config.feed_forward_dim == 4 * config.d_model
    context_length = min(config.context_length, context_length)
    # The first layer of each kind; if they are all of one kind, the first two layers.
    kinds = [(config.is_local(layer), config.rotates(layer)) for layer in range(config.n_layers)]
    layers = sorted(map(kinds.index, set(kinds)))
    layers = layers if len(layers) > 1 else list(range(min(config.n_layers, 2)))
    return replace(
        config,
        # A model of another kind may give meaning to ids of its own vocabulary.
        vocab_size=vocab_size if type(config) is ModelConfig else config.vocab_size,
        context_length=context_length,
        d_model=width,
        n_layers=len(layers),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_feed_forward=4 * width if is_fourfold else min(config.feed_forward_dim, 2 * width),
        sliding_window=max(1, context_length // 4) if config.has_window else config.sliding_window,
        sliding_window_layers=None if config.sliding_window is None else tuple(map(config.is_local, layers)),
        rope_layers=None if config.rope_layers is None else tuple(map(config.rotates, layers)),
    )


def random_batch(model: Transformer, rows: int, seed: int = 0, every: int = 1, vocab_size: int = 0) -> Batch:
    """(rows, context length) random tokens, each `every`-th target learned; one document in a row."""
    length, size = model.config.context_length, min(vocab_size or model.config.vocab_size, model.config.vocab_size)
    tokens = torch.randint(0, size, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    targets[:, torch.arange(length) % every != 0] = IGNORE_INDEX
    return Batch(tokens[:, :-1].contiguous(), targets, torch.zeros(rows, length).long())


def small_batches(subject: Subject, model: Transformer) -> list[Batch]:
    """Enough for two steps of three batches, with different numbers of targets."""
    sizes = [(2, 1), (1, 2), (3, 3), (1, 1), (2, 2), (2, 1)]
    known = subject.tokenizer.vocab_size
    return [random_batch(model, n, seed, every, known) for seed, (n, every) in enumerate(sizes)]


def small_train_step(subject: Subject, model: Transformer, batches: Sequence[Batch], **options: Any) -> TrainStep:
    """The step of such a run, of one batch unless `options` of its configuration say otherwise."""
    engine = Engine(subject.engine.device)
    return TrainStep(model, FixedBatches(batches), subject.tokenizer, _config(subject, **options), engine)


@contextmanager
def small_trainer(
    subject: Subject, model: Transformer, batches: Sequence[Batch], validation: list[Batch], folder: str, **options: Any
) -> Iterator[Trainer]:
    """The trainer of such a run of two steps. Inside the context nothing is logged or displayed."""
    config, engine = _config(subject, output=folder, **options), Engine(subject.engine.device)
    logger = logging.getLogger("transformer")
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # which is no terminal: no progress bar
            yield Trainer(model, subject.tokenizer, FixedBatches(batches), validation, config, engine)
    finally:
        logger.disabled = before


def _config(subject: Subject, **options: Any) -> TrainConfig:
    """Two steps with the run's optimizer and precision."""
    taken = {name: value for name, value in subject.config.options().items() if name in _OF_THE_RUN}
    fixed = dict(_FIXED, max_steps=2, validate_every=2, max_loss=1e30, gradient_accumulation_steps=1)
    return TrainConfig.from_options(**{**taken, **fixed, **options})


@contextmanager
def output_folder() -> Iterator[str]:
    """A folder for a run, which is removed after it."""
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        yield str(Path(folder) / "run")


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
