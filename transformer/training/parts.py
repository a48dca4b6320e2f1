"""What a training run is made of: its text as batches, its tokenizer, and the model that it begins with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from transformer.errors import ConfigError
from transformer.hub import checkpoint
from transformer.hub.embeddings import pretrained_embeddings, use_embeddings
from transformer.hub.source import fetch
from transformer.model import Transformer
from transformer.text.batches import BatchSource, EpochBatches, ShortWindowsFirst, Windows
from transformer.text.conversation import CHAT_TEMPLATE
from transformer.text.corpus import documents, has_conversations, has_split, pieces
from transformer.text.shards import tokenized
from transformer.text.streaming import StreamBatches
from transformer.text.tokenizer import Tokenizer
from transformer.text.tokens import TokenStream, tokenize
from transformer.training import state
from transformer.training.bigrams import start_from_bigrams
from transformer.training.config import TrainConfig
from transformer.training.engine import Engine

logger = logging.getLogger("transformer")
_HELD_OUT = 20  # without a validation split, the last of so many parts of the text is held out
_STREAMED_PIECES = 5000  # documents, or pieces of long ones, that the tokenizer of a stream is trained on
_STREAMED_VALIDATION = 200  # documents of a validation split that is not kept on disk


@dataclass(frozen=True)
class Parts:
    """What a run is made of. training: the windows behind `source`; None: there are none, as of a stream."""

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


def _tokenizer(config: TrainConfig, engine: Engine) -> Tokenizer:
    """The tokenizer of the run, kept beside its checkpoints: a run that goes on has the one it began with."""
    kept = config.checkpoints
    if not engine.main or state.exists(kept):
        return Tokenizer.load(kept)
    if config.init_from:
        tokenizer = Tokenizer.load(fetch(config.init_from))
    elif config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    else:
        logger.info("training a tokenizer of %s tokens on %s", f"{config.vocab_size:,}", config.data)
        found = pieces(config.data, config.data_config, clean=config.clean, max_documents=config.max_documents)
        texts = (piece.text for piece in (islice(found, _STREAMED_PIECES) if config.stream else found))
        tokenizer = Tokenizer.train(texts, config.vocab_size, whole=config.whole_tokens)
    if has_conversations(config.data, config.data_config):
        tokenizer.chat_template = CHAT_TEMPLATE  # what it will have learned, whatever was its template before
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

    cache = Path(config.token_cache) if config.token_cache else None

    def read(data: str, data_config: str | None, split: str) -> TokenStream:
        return tokenized(data, data_config, split, tokenizer, cache)

    stream = tokenized(config.data, config.data_config, "train", tokenizer, cache, config.clean, config.max_documents)
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
    source = EpochBatches(training, config.batch_size, config.seed, engine.rank, engine.world)
    if config.short_window_share:
        length = config.short_window_length
        short = Windows(stream, length, pad, span, None, config.prompt_share, config.seed)
        rows = max(1, round(config.batch_size * context / length))
        source = ShortWindowsFirst(
            EpochBatches(short, rows, config.seed, engine.rank, engine.world), source, config.short_window_share
        )
    return source, training, validation


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
