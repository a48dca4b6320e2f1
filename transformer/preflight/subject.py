"""What is checked: the real objects of a run, and copies of them that checks may change."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch, BatchSource, Windows, validation_batches
from transformer.data.document import Document, join_pieces
from transformer.data.tokenize import TokenStream, tokenize
from transformer.data.tokenizer import Tokenizer
from transformer.device import computes_in_bf16
from transformer.hub.text_sources import pieces
from transformer.model import Transformer
from transformer.preflight.rows import Rows
from transformer.training import trainer
from transformer.training.distributed import Engine
from transformer.training.loss import LanguageModelLoss
from transformer.training.run_components import RunComponents
from transformer.training.step import Stepper
from transformer.training.train_config import TrainConfig

_BATCHES = 16  # of the training text are looked at, or less, to have no more than this many tokens:
_TOKENS = 2**17
_CHARACTERS = 2**20  # of the corpus are compared with its tokens
_STREAMED_CHARACTERS = 2**23  # of a corpus without windows are tokenised, to look rows up
_VALIDATION_ROWS = 8  # in a batch


class Alone(Engine):
    """The engine of the one process that checks, while the others wait."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size, self.main, self.device, self.sharded = 0, 1, True, device, False

    def prepare(self, module: LanguageModelLoss) -> nn.Module:
        return module.to(self.device)

    def gradients(self, module: nn.Module, last: bool) -> Any:
        return nullcontext()

    def log(self, numbers: dict[str, Any], step: int) -> None:
        pass


class Again:
    """A source that gives the same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @property
    def steps_in_epoch(self) -> int:
        return 1

    def next(self) -> Batch:
        return self.batch

    def set_progress(self, progress: float) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def describe_last(self) -> str:
        return "the batch of the preflight"


@dataclass(frozen=True)
class Subject:
    """A run before its first step.

    batches: the next ones of the source, which is put back to where it was; places: where they stand.
    """

    model: Transformer
    tokenizer: Tokenizer
    source: BatchSource
    training: Windows | None
    validation: Windows
    config: TrainConfig
    engine: Engine
    batches: list[Batch]
    places: list[str]

    @classmethod
    def of(cls, parts: RunComponents, config: TrainConfig, engine: Engine) -> Subject:
        """Draw the batches that are looked at."""
        batches: list[Batch] = []
        places: list[str] = []
        source = parts.source
        before = source.state()
        tokens, most = 0, min(_BATCHES, source.steps_in_epoch or _BATCHES)
        while len(batches) < most and (tokens < _TOKENS or len(batches) < 2):
            batches.append(source.next())
            places.append(source.describe_last())
            tokens += batches[-1].inputs.numel()
        source.restore(before)
        components = {name: value for name, value in vars(parts).items() if name in cls.__dataclass_fields__}
        return cls(**components, config=config, engine=engine, batches=batches, places=places)

    @cached_property
    def validation_batches(self) -> list[Batch]:
        """What the run is validated on."""
        return validation_batches(self.validation, self.config.run.validation_windows, _VALIDATION_ROWS)

    @cached_property
    def rows(self) -> Rows:
        """The rows of `batches`."""
        return Rows.of(self.batches, self.padding_ids)

    @cached_property
    def validation_rows(self) -> Rows:
        """The rows of `validation_batches`."""
        return Rows.of(self.validation_batches, self.padding_ids)

    @cached_property
    def text_row(self) -> Tensor:
        """(1, T) tokens of the run without padding: the row that has most text."""
        rows = self.rows
        row = int(rows.real.sum(axis=1).argmax())
        text = rows.inputs[row][rows.real[row]]
        if len(text) < 2:  # nothing but padding
            text = np.arange(rows.inputs.shape[1]) % self.model.config.vocab_size
        return torch.from_numpy(np.array(text, np.int64))[None]

    @cached_property
    def text(self) -> TokenStream:
        """The training text; its beginning, tokenised here, where there are no windows of it."""
        if self.training is not None:
            return self.training.stream
        return tokenize(_read(self.config, _STREAMED_CHARACTERS), self.tokenizer)

    @cached_property
    def documents(self) -> list[tuple[str, bool]]:
        """The first documents of the corpus, read again, each with whether this is all of it."""
        return [(document.text, whole) for document, whole in self._documents]

    @cached_property
    def learned_texts(self) -> list[str]:
        """What is learned of these documents, without prompts."""
        return ["".join(text for text, learned in document.parts if learned) for document, _ in self._documents]

    @cached_property
    def _documents(self) -> list[tuple[Document, bool]]:
        read = list(_read(self.config, _CHARACTERS))
        joined = list(join_pieces(read))
        cut = sum(len(document.text) for document in joined) > _CHARACTERS  # then the last may go on
        return [(document, not (cut and number == len(joined) - 1)) for number, document in enumerate(joined)]

    @cached_property
    def padding_ids(self) -> set[int]:
        """Tokens that may fill up rows."""
        ids = {self.tokenizer.pad_id, self.validation.pad_id}
        return {id for id in ids if id is not None} | {self.tokenizer.end_of_text_id}

    @cached_property
    def bf16(self) -> bool:
        """Whether the run multiplies in bf16."""
        return computes_in_bf16(self.engine.device, self.config.run.precision)

    @cached_property
    def trained(self) -> bool:
        """Whether the model begins with weights that were not drawn by its own initialisation."""
        config = self.config
        return bool(config.model.init_from or config.model.embeddings_from or config.model.start_from_bigrams)

    @cached_property
    def fullest(self) -> Batch:
        """Of `batches` the one with the most targets."""
        return max(self.batches, key=lambda batch: int((batch.targets != IGNORE_INDEX).sum()))

    def fresh(self, dropout: bool = True) -> Transformer:
        """A copy of the model on the device of the run, in training mode, that may be changed."""
        model = copy.deepcopy(self.model).to(self.engine.device).train()
        if not dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return model

    def awake(self) -> Transformer:
        """A copy whose layers all do something: with start_from_bigrams they begin by adding nothing to the stream."""
        model = self.fresh()
        if self.config.model.start_from_bigrams:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                for parameter in model.layers.parameters():
                    if parameter.dim() == 2 and not parameter.any():
                        parameter.normal_(std=parameter.shape[1] ** -0.5)
        return model

    @cached_property
    def headless(self) -> Transformer:
        """A copy of which only the hidden states are of interest: the vocabulary, which takes most time, is cut off."""
        model = self.awake()
        model.head.weight = nn.Parameter(model.head.weight[:1].detach().clone(), requires_grad=False)
        if model.head.bias is not None:
            model.head.bias = nn.Parameter(model.head.bias[:1].detach().clone(), requires_grad=False)
        return model

    @cached_property
    def headless_stepper(self) -> Stepper:
        """What calls it as a step of the run would."""
        return self.stepper(self.headless, self.batches[0])

    def stepper(self, model: Transformer, batch: Batch, **options: Any) -> Stepper:
        """What makes the steps of the run, for a copy of the model that learns from one batch again and again.

        What is checked is what the trainer would use, so its names are looked up in it.

        Args:
            options: of the run's configuration that are to be others.
        """
        alone = Alone(self.engine.device)
        config = self.config.with_options(**{"gradient_accumulation_steps": 1, "max_loss": float("inf"), **options})
        module = alone.prepare(trainer.LanguageModelLoss(model, self.bf16))
        optimizers = trainer.make_optimizers(model, config)
        return trainer.Stepper(module, optimizers, Again(batch), self.tokenizer, config, alone)


def _read(config: TrainConfig, characters: int) -> Iterator[Document]:
    """The beginning of the corpus, in pieces."""
    read = 0
    data = config.data
    text = (data.data, data.data_config, "train", data.clean, data.text_column, data.max_documents)
    for piece in pieces(*text):
        yield piece
        read += len(piece.text)
        if read > characters:
            return


def cut(batch: Batch, rows: int, length: int) -> Batch:
    """The first rows of a batch that learn something, and of those the first this many places from there on."""
    learned = (batch.targets >= 0).any(dim=1)
    order = torch.argsort(~learned, stable=True)[:rows]
    begin = 0
    if not bool((batch.targets[order, :length] >= 0).any()):  # as where a long prompt comes first
        begin = int((batch.targets[order] >= 0).any(dim=0).float().argmax())
        begin = min(begin, max(0, batch.inputs.shape[1] - length))
    part = (order, slice(begin, begin + length))
    return Batch(batch.inputs[part], batch.targets[part], batch.segment_ids[part])


def other_tokens(tokens: Tensor, first: int, stop: int, subject: Subject) -> Tensor:
    """The tokens with another one from `first` until before `stop`, which is no padding."""
    size, padding = subject.model.config.vocab_size, subject.padding_ids
    one, another = sorted(range(size - 1, max(-1, size - 3 - len(padding)), -1), key=lambda id: id in padding)[:2]
    changed = tokens.clone()
    changed[:, first:stop] = torch.where(tokens[:, first:stop] == one, another, one)
    return changed


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it random numbers may be drawn: outside nobody notices."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


@contextmanager
def without_dropout(model: Transformer) -> Iterator[None]:
    """Within it nothing is dropped, although the model is in training mode."""
    before = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    for module in before:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in before.items():
            module.p = p


@contextmanager
def recorded(model: Transformer) -> Iterator[list[Tensor]]:
    """Within it the output of the last layer, (B, T, D), is kept of every forward pass, without its graph."""
    outputs: list[Tensor] = []
    handle = model.layers[-1].register_forward_hook(lambda _, inputs, output: outputs.append(output.detach()))
    try:
        yield outputs
    finally:
        handle.remove()
