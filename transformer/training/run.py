"""A whole run: from text and options to a model directory with its card."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from transformer.device import describe, pick_device
from transformer.errors import ConfigError
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.hub.card import TrainingFacts, command_line, write_card
from transformer.hub.source import fetch
from transformer.model import Transformer
from transformer.text.batches import TokenStream, Windows, tokenize
from transformer.text.corpus import documents, has_split
from transformer.text.tokenizer import Tokenizer
from transformer.training.config import TrainConfig
from transformer.training.trainer import Result, Trainer

logger = logging.getLogger("transformer")
_HELD_OUT = 20  # without a validation split, the last of so many parts of the text is held out
_SCORED_TOKENS = 50_000  # of the validation text, for the card: about a minute on a CPU at the default size


def train(config: TrainConfig) -> Result:
    """Train a model as `config` says; the best one is left in `config.output`.

    Raises:
        TransformerError: if the options, the text or the model to start from cannot be used.
    """
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    model, tokenizer = _start(config)
    context = min(config.context_length, model.config.context_length)
    train_windows, validation_windows = _windows(config, tokenizer, context)
    logger.info(
        "%s parameters · %s windows of %d tokens to train on, %s to validate on · %s",
        f"{model.parameter_count():,}",
        f"{len(train_windows):,}",
        context,
        f"{len(validation_windows):,}",
        device,
    )
    result = Trainer(model.to(device).train(), tokenizer, train_windows, validation_windows, config).run()
    facts = TrainingFacts(command_line(config.changed()), result.steps, result.tokens, result.seconds, describe(device))
    facts.write(config.output)
    _write_card(config, tokenizer, validation_windows)
    logger.info("the best model, of step %s, is in %s", f"{result.best_step:,}", config.output)
    return result


def _write_card(config: TrainConfig, tokenizer: Tokenizer, validation: Windows) -> None:
    """The card of the model in the output folder, with the first documents of the validation text scored."""
    tokens = validation.stream.tokens[validation.first : validation.stop][:_SCORED_TOKENS]
    ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
    texts = [tokenizer.decode(part.tolist()) for part in np.split(tokens, ends)]
    scored = evaluate(checkpoint.load_model(config.output), tokenizer, filter(None, texts))
    name = Path(config.data).name
    write_card(config.output, [(f"held-out text of {name}", scored)], data=f"Trained on {name}.")


def _start(config: TrainConfig) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer that the run begins with."""
    if config.init_from:
        return checkpoint.load(fetch(config.init_from))
    if config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    else:
        logger.info("training a tokenizer of %s tokens on %s", f"{config.vocab_size:,}", config.data)
        texts = (document.prompt + document.text for document in documents(config.data, config.data_config))
        tokenizer = Tokenizer.train(texts, config.vocab_size, whole=config.whole_tokens)
    return Transformer(config.model_config(tokenizer.vocab_size)), tokenizer


def _windows(config: TrainConfig, tokenizer: Tokenizer, context: int) -> tuple[Windows, Windows]:
    """Windows to train on and to validate on."""

    def stream(source: str, data_config: str | None, split: str) -> TokenStream:
        return tokenize(documents(source, data_config, split), tokenizer)

    pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.end_of_text_id
    training = stream(config.data, config.data_config, "train")
    logger.info("%s tokens to train on (%s)", f"{len(training.tokens):,}", config.data)
    if config.validation_data:
        return Windows(training, context, pad), Windows(stream(config.validation_data, None, "train"), context, pad)
    if has_split(config.data, config.data_config, "validation"):
        validation = stream(config.data, config.data_config, "validation")
        return Windows(training, context, pad), Windows(validation, context, pad)
    cut = _held_out_from(len(training.tokens))
    size = len(training.tokens)
    return Windows(training, context, pad, (0, cut)), Windows(training, context, pad, (cut - 1, size))


def _held_out_from(n_tokens: int) -> int:
    """Where the held-out part of a text begins that has no validation split."""
    cut = n_tokens - max(2, min(n_tokens // 2, n_tokens // _HELD_OUT))
    if cut < 2:
        raise ConfigError(f"the text has {n_tokens} tokens, which is too little to train on and to validate on.")
    return cut
