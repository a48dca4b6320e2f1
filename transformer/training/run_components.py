"""The components of a training run: its tokenizer, its initial model, and its text as batches."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from transformer.data.batches import BatchSource, EpochBatches, ShortWindowsFirst, Windows
from transformer.data.conversation import CHAT_TEMPLATE
from transformer.data.shards import tokenized
from transformer.data.streaming import StreamBatches
from transformer.data.tokenize import TokenStream, tokenize
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError
from transformer.hub import checkpoint
from transformer.hub.archive import discard
from transformer.hub.embeddings import pretrained_embeddings, use_embeddings
from transformer.hub.resolve import fetch, fetch_tokenizer
from transformer.hub.text_sources import documents, find_text, has_conversations, has_split, pieces
from transformer.legacy import model_class
from transformer.model import Transformer
from transformer.reporting.training_facts import TrainingFacts
from transformer.training import run_state
from transformer.training.bigrams import start_from_bigrams
from transformer.training.distributed import Engine
from transformer.training.memory_limits import check_memory
from transformer.training.optimizers import trained_embeddings
from transformer.training.option_groups import TextOptions
from transformer.training.train_config import TrainConfig

logger = logging.getLogger("transformer")
_HELD_OUT = 20  # without a validation split, the last 1/20 of the text is held out
_STREAMED_PIECES = 5000  # documents, or pieces of long ones, for training the tokenizer of a stream
_STREAMED_VALIDATION = 200  # documents of the validation text of a stream


@dataclass(frozen=True)
class RunComponents:
    """The components of a training run.

    source: the training batches. training: the windows they consist of; None: the text is streamed.
    validation: the windows of the validation text.
    model_type: Hub name of the architecture of the initial model; None: the model is newly built.
    trained_before: how the initial model was trained, if its directory says so.
    """

    tokenizer: Tokenizer
    model: Transformer
    source: BatchSource
    training: Windows | None
    validation: Windows
    model_type: str | None = None
    trained_before: TrainingFacts | None = None


def build(config: TrainConfig, engine: Engine) -> RunComponents:
    """Build the components of a run, the same in every process.

    Raises:
        TransformerError: if the options, the text or the initial model cannot be used.
    """
    with engine.main_first():  # the first process downloads, trains and tokenizes; the others read its files
        start = fetch(config.model.init_from) if config.model.init_from else None
        try:
            tokenizer = prepare_tokenizer(config, engine, start)
            model = _model(config, tokenizer, start, engine.device)
            model_type = checkpoint.read_model_type(start) if start else None
            trained_before = _trained_before(start) if start else None
        finally:
            if start is not None:
                discard(start)
        context = _context(config, model)
        source, training, validation = _batches(config, tokenizer, context, engine)
        if config.model.start_from_bigrams and training:
            start_from_bigrams(model, training.stream.tokens[training.first : training.stop])
    return RunComponents(tokenizer, model, source, training, validation, model_type, trained_before)


def _trained_before(start: Path) -> TrainingFacts | None:
    """How the initial model was trained; None if its directory does not say so in our way."""
    with suppress(CheckpointError):
        return TrainingFacts.read(start)
    return None


def prepare_tokenizer(config: TrainConfig, engine: Engine, start: Path | None) -> Tokenizer:
    """The tokenizer of the run, which is saved beside its checkpoints and loaded from there when it is resumed.

    Args:
        start: directory of the model that is fine-tuned; None: a model with random weights is trained.
    """
    folder, text = config.run.checkpoints, config.text
    if not engine.main or run_state.exists(folder):
        return Tokenizer.load(folder)
    if start:
        tokenizer = Tokenizer.load(start)
    elif text.tokenizer:
        tokenizer = Tokenizer.load(fetch_tokenizer(text.tokenizer))
    else:
        logger.info("training a tokenizer of %s tokens on %s", f"{text.vocab_size:,}", text.data)
        found = pieces(text.data, text.data_config, "train", text.clean, text.text_column, text.max_documents)
        texts = (piece.text for piece in (islice(found, _STREAMED_PIECES) if text.stream else found))
        tokenizer = Tokenizer.train(texts, text.vocab_size, whole=text.whole_tokens)
    if has_conversations(text.data, text.data_config, text.text_column):
        # Conversations are trained on in the format of this template, so that the model has to be prompted in it.
        if tokenizer.chat_template not in (None, CHAT_TEMPLATE):
            logger.warning(
                "the model's own chat template is replaced: training writes conversations as lines of 'User: ...' and "
                "'Assistant: ...', and the trained model has the template for this format. To keep the model's own "
                "format, write the conversations in it yourself, as rows of 'prompt' and 'completion'."
            )
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save(folder)
    return tokenizer


def _model(config: TrainConfig, tokenizer: Tokenizer, start: Path | None, device: torch.device) -> Transformer:
    """The initial model, the same in every process.

    Raises:
        ConfigError: if the tokenizer has tokens without an embedding, or the model is too large for this machine.
    """
    torch.manual_seed(config.run.seed)
    if start:
        model = checkpoint.load_model(start)
        if config.model.dropout is not None:
            _set_dropout(model, config.model.dropout)
    else:
        architecture = config.model.architecture(tokenizer.vocab_size)
        check_memory(architecture, device)
        model = model_class(architecture)(architecture)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {config.model.init_from} has {tokenizer.vocab_size:,} tokens, but the model has "
            f"embeddings for {model.config.vocab_size:,}: they do not belong together, or tokens were added to the "
            "tokenizer only. Put the right tokenizer.json beside the weights, or resize the model's embeddings."
        )
    if config.model.embeddings_from:
        use_embeddings(model, pretrained_embeddings(config.model.embeddings_from))
    if config.model.freeze_embeddings:
        model.token_embedding.weight.requires_grad_(False)
        if config.optimization.embedding_learning_rate and not trained_embeddings(model):
            raise ConfigError(
                "--embedding-learning-rate has no effect with --freeze-embeddings: this model has no other embeddings "
                "that would be trained at that rate. Leave it out, or leave out --freeze-embeddings."
            )
    return model


def _set_dropout(model: Transformer, p: float) -> None:
    """Change the dropout probability of a model."""
    model.config = dataclasses.replace(model.config, dropout=p)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p


def _context(config: TrainConfig, model: Transformer) -> int:
    """The number of tokens in a window.

    Raises:
        ConfigError: if --context-length is more than the context of the model.
    """
    most, asked = model.config.context_length, config.model.context_length
    if asked > most and "context_length" in config.changed():
        raise ConfigError(
            f"context_length {asked:,} is more than the {most:,} tokens that the model of {config.model.init_from} can "
            f"attend to: give at most {most:,}."
        )
    return min(asked, most)


def _batches(
    config: TrainConfig, tokenizer: Tokenizer, context: int, engine: Engine
) -> tuple[BatchSource, Windows | None, Windows]:
    """Training batches, the windows they consist of (None: the text is streamed), and validation windows."""
    text, batch_size, seed = config.text, config.optimization.batch_size, config.run.seed
    processes = (engine.rank, engine.world_size)
    if text.stream:
        validation = Windows(_streamed_validation(text, tokenizer), context, tokenizer.padding_id)
        corpus, column = find_text(text.data, text.data_config), text.text_column
        stream = StreamBatches(corpus, tokenizer, context, batch_size, seed, *processes, text_column=column)
        return stream, None, validation

    tokens, span, validation = _tokens(text, tokenizer, context)

    def windows(length: int, stride: int | None) -> Windows:
        return Windows(tokens, length, tokenizer.padding_id, span, stride, text.prompt_share, seed)

    training = windows(context, text.window_stride)
    source = EpochBatches(training, batch_size, seed, *processes)
    if not text.short_window_share:
        return source, training, validation
    rows = max(1, round(batch_size * context / text.short_window_length))
    short = EpochBatches(windows(text.short_window_length, None), rows, seed, *processes)
    return ShortWindowsFirst(short, source, text.short_window_share), training, validation


def _tokens(
    text: TextOptions, tokenizer: Tokenizer, context: int
) -> tuple[TokenStream, tuple[int, int] | None, Windows]:
    """The tokens of the training text, the span of them to train on (None: all), and the validation windows."""
    cache, column = Path(text.token_cache) if text.token_cache else None, text.text_column
    corpus = find_text(text.data, text.data_config)
    tokens = tokenized(corpus, tokenizer, cache, text.clean, column, text.max_documents)
    logger.info("%s tokens to train on (%s)", f"{len(tokens.tokens):,}", text.data)
    if found := _validation_text(text):
        validation = tokenized(find_text(*found), tokenizer, cache, text_column=column)
        return tokens, None, Windows(validation, context, tokenizer.padding_id)
    cut = _held_out_from(tokens)
    held_out = Windows(tokens, context, tokenizer.padding_id, (cut - 1, len(tokens.tokens)))
    return tokens, (0, cut), held_out


def _validation_text(text: TextOptions) -> tuple[str, str | None, str] | None:
    """The name, configuration and split of the validation text; None: it is held out of the training text."""
    if text.validation_data:
        return text.validation_data, None, "train"
    if has_split(text.data, text.data_config, "validation"):
        return text.data, text.data_config, "validation"
    return None


def _streamed_validation(text: TextOptions, tokenizer: Tokenizer) -> TokenStream:
    """The tokens of the first documents of the validation text."""
    found = _validation_text(text)
    if found is None:
        raise ConfigError(f"{text.data} has no validation split: give validation_data to stream it.")
    return tokenize(islice(documents(*found, text.text_column), _STREAMED_VALIDATION), tokenizer)


def _held_out_from(stream: TokenStream) -> int:
    """The first token of the held-out part of a text without a validation split.

    If the last tokens are all of a prompt, the part starts earlier, with the last document that has targets.

    Raises:
        ConfigError: if the text is too short.
    """
    n_tokens = len(stream.tokens)
    cut = n_tokens - max(2, min(n_tokens // 2, n_tokens // _HELD_OUT))
    if stream.loss_mask is not None and not stream.loss_mask[cut:].any():
        last = int(np.flatnonzero(stream.loss_mask)[-1])
        begin = int(stream.starts[np.searchsorted(stream.starts, last, side="right") - 1])
        cut = begin if stream.loss_mask[1:begin].any() else last  # of a single document, its last target
    if cut < 2:
        raise ConfigError(f"the text has {n_tokens} tokens, which are too few to train and to validate on.")
    return cut
