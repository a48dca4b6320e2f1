"""A whole run: from text and options to a model directory with its card."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from transformer.device import describe
from transformer.errors import ConfigError, PreflightError, TransformerError
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.hub.card import TrainingFacts, command_line, write_card
from transformer.hub.embeddings import pretrained_embeddings, use_embeddings
from transformer.hub.publish import prepare, push
from transformer.hub.source import fetch
from transformer.model import Transformer
from transformer.text.batches import BatchSource, EpochBatches, Windows, validation_batches
from transformer.text.corpus import documents, has_split, pieces
from transformer.text.shards import tokenized
from transformer.text.streaming import StreamBatches
from transformer.text.tokenizer import Tokenizer
from transformer.text.tokens import TokenStream, tokenize
from transformer.training import state
from transformer.training.bigrams import start_from_bigrams
from transformer.training.budget import Progress
from transformer.training.config import TrainConfig
from transformer.training.engine import Engine
from transformer.training.memory import keep_freed_memory
from transformer.training.preflight import preflight
from transformer.training.trainer import CHECKPOINTS, Trainer

logger = logging.getLogger("transformer")
_HELD_OUT = 20  # without a validation split, the last of so many parts of the text is held out
_VALIDATION_ROWS = 8  # windows scored at once
_STREAMED_PIECES = 5000  # documents, or pieces of long ones, that the tokenizer of a stream is trained on
_STREAMED_VALIDATION = 200  # documents of a validation split that is not kept on disk
_SCORED_TOKENS = 50_000  # of the validation text, for the card: about a minute on a CPU at the default size


@dataclass(frozen=True)
class Parts:
    """What a run is made of. training: the windows behind `source`; None: a stream has none."""

    tokenizer: Tokenizer
    model: Transformer
    source: BatchSource
    training: Windows | None
    validation: Windows


def build(config: TrainConfig, engine: Engine) -> Parts:
    """Everything that a run needs before its first step, the same in every process.

    Raises:
        TransformerError: if the options, the text or the model to start from cannot be used.
    """
    with engine.main_first():  # what the first process fetches, trains or tokenises, the others find
        tokenizer = _tokenizer(config, engine)
        model = _model(config, tokenizer)
        context = min(config.context_length, model.config.context_length)
        source, training, validation = _text(config, tokenizer, context, engine)
        if config.start_from_bigrams and training:
            start_from_bigrams(model, training.stream.tokens[training.first : training.stop])
    return Parts(tokenizer, model, source, training, validation)


def train(config: TrainConfig, hub_token: str | None = None) -> Progress:
    """Train a model as `config` says; the best one is left in `config.output`.

    Args:
        hub_token: to publish with, if it is not the Hub client's own. It is no option: options are written down.

    Raises:
        Interrupted: if it was asked to stop; its state is saved.
        PreflightError: if a check before the first step failed.
        TransformerError: if the options, the text or the model to start from cannot be used.
    """
    engine = Engine(config.device, config.parallel, config.trackers, config.output)
    if not engine.main:
        logger.setLevel(logging.WARNING)
    try:
        if engine.main and config.push_to:
            prepare(config.push_to, config.push_public, hub_token)
        if engine.main and config.restart:  # before anything of the new run is written beside them
            state.remove(Path(config.output) / CHECKPOINTS)
        parts = build(config, engine)
        model, tokenizer, validation = parts.model, parts.tokenizer, parts.validation
        logger.info(
            "%s parameters · %s · %s",
            f"{model.parameter_count():,}",
            f"{len(parts.training):,} windows of {parts.training.length} tokens to train on"
            if parts.training
            else "a stream of text",
            f"{engine.world} × {engine.device.type}",
        )
        if config.preflight and not state.exists(Path(config.output) / CHECKPOINTS):  # or it has begun already
            _preflight(parts, config, engine)
        rows = validation_batches(validation, config.validation_windows, _VALIDATION_ROWS, engine.rank, engine.world)
        if engine.device.type == "cpu":
            keep_freed_memory()  # not before: what tokenising freed is not needed again
        progress = Trainer(model.train(), tokenizer, parts.source, rows, config, engine).run()
        if engine.main:
            command = command_line(config.changed())
            processor = f"{engine.world} × {describe(engine.device)}" if engine.world > 1 else describe(engine.device)
            facts = TrainingFacts(command, progress.step, progress.tokens, progress.seconds, processor)
            facts.write(config.output)
            _write_card(config, tokenizer, validation)
            logger.info("the best model, of step %s, is in %s", f"{progress.best_step:,}", config.output)
            if config.push_to:
                push(config.output, config.push_to, config.push_public, hub_token)
        return progress
    finally:
        engine.close()


def _preflight(parts: Parts, config: TrainConfig, engine: Engine) -> None:
    """Check the run in its first process, while the others wait; all of them stop if it fails.

    Raises:
        PreflightError: with cause and cure of what failed. ConfigError: if an option cannot work.
    """
    error: TransformerError | None = None
    if engine.main:
        try:
            report = preflight(
                parts.model, parts.tokenizer, parts.source, parts.training, parts.validation, config, engine
            )
            logger.info("%s", report.table())
            for check in report.warned:
                logger.warning("%s: %s", check.name, check.cause_and_cure)
            if report.failed:
                error = PreflightError(f"{report.sentences()} (--no-preflight trains all the same.)")
        except TransformerError as raised:
            error = raised
    if engine.sum(float(error is not None))[0]:
        raise error or PreflightError("the preflight failed in the first process.")


def _tokenizer(config: TrainConfig, engine: Engine) -> Tokenizer:
    """The tokenizer of the run, kept beside its checkpoints: a run that goes on has the one it began with."""
    kept = Path(config.output) / CHECKPOINTS
    if not engine.main or state.exists(kept):
        return Tokenizer.load(kept)
    if config.init_from:
        tokenizer = Tokenizer.load(fetch(config.init_from))
    elif config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    else:
        logger.info("training a tokenizer of %s tokens on %s", f"{config.vocab_size:,}", config.data)
        found = pieces(config.data, config.data_config)
        texts = (piece.text for piece in (islice(found, _STREAMED_PIECES) if config.stream else found))
        tokenizer = Tokenizer.train(texts, config.vocab_size, whole=config.whole_tokens)
    tokenizer.save(kept)
    return tokenizer


def _model(config: TrainConfig, tokenizer: Tokenizer) -> Transformer:
    """The model that the run begins with, the same in every process."""
    torch.manual_seed(config.seed)
    if config.init_from:
        model = checkpoint.load_model(fetch(config.init_from))
    else:
        model = Transformer(config.model_config(tokenizer.vocab_size))
    if config.embeddings_from:
        use_embeddings(model, pretrained_embeddings(config.embeddings_from))
    if config.freeze_embeddings:
        model.token_embedding.weight.requires_grad_(False)
    return model


def _text(
    config: TrainConfig, tokenizer: Tokenizer, context: int, engine: Engine
) -> tuple[BatchSource, Windows | None, Windows]:
    """Batches to train on, the windows they are of (None: a stream has none), and windows to validate on."""
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.end_of_text_id
    if config.stream:
        validation = Windows(_streamed_validation(config, tokenizer), context, pad)
        source: BatchSource = StreamBatches(
            config.data,
            config.data_config,
            "train",
            tokenizer,
            context,
            config.batch_size,
            config.seed,
            engine.rank,
            engine.world,
        )
        return source, None, validation

    def read(data: str, data_config: str | None, split: str) -> TokenStream:
        return tokenized(data, data_config, split, tokenizer, Path(config.token_cache) if config.token_cache else None)

    stream = read(config.data, config.data_config, "train")
    logger.info("%s tokens to train on (%s)", f"{len(stream.tokens):,}", config.data)
    span = None
    if config.validation_data:
        validation = Windows(read(config.validation_data, None, "train"), context, pad)
    elif has_split(config.data, config.data_config, "validation"):
        validation = Windows(read(config.data, config.data_config, "validation"), context, pad)
    else:
        size = len(stream.tokens)
        cut = _held_out_from(size)
        span, validation = (0, cut), Windows(stream, context, pad, (cut - 1, size))
    training = Windows(stream, context, pad, span, config.window_stride, config.prompt_share, config.seed)
    return EpochBatches(training, config.batch_size, config.seed, engine.rank, engine.world), training, validation


def _streamed_validation(config: TrainConfig, tokenizer: Tokenizer) -> TokenStream:
    """The first documents of the validation text, which are kept in memory."""
    if config.validation_data:
        found = documents(config.validation_data)
    elif has_split(config.data, config.data_config, "validation"):
        found = documents(config.data, config.data_config, "validation")
    else:
        raise ConfigError(f"{config.data} has no validation split: give validation_data to stream it.")
    return tokenize(islice(found, _STREAMED_VALIDATION), tokenizer)


def _held_out_from(n_tokens: int) -> int:
    """Where the held-out part of a text begins that has no validation split."""
    cut = n_tokens - max(2, min(n_tokens // 2, n_tokens // _HELD_OUT))
    if cut < 2:
        raise ConfigError(f"the text has {n_tokens} tokens, which is too little to train on and to validate on.")
    return cut


def _write_card(config: TrainConfig, tokenizer: Tokenizer, validation: Windows) -> None:
    """The card of the model in the output folder, with the first documents of the validation text scored."""
    tokens = validation.stream.tokens[validation.first : validation.stop][:_SCORED_TOKENS]
    ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
    texts = [tokenizer.decode(part.tolist()) for part in np.split(tokens, ends)]
    scored = evaluate(checkpoint.load_model(config.output), tokenizer, filter(None, texts))
    name = Path(config.data).name
    write_card(config.output, [(f"held-out text of {name}", scored)], data=f"Trained on {name}.")
