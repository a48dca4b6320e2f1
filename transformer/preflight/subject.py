"""The subject of the checks: the components of a run before its first step, and copies that checks may change."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data import batches as batching
from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.data.document import Document, join_pieces
from transformer.data.tokenize import TokenStream, tokenize
from transformer.device import computes_in_bf16
from transformer.hub.text_sources import pieces
from transformer.model import Transformer
from transformer.model.linear import Linear
from transformer.preflight.places import ABSENT, LocatedRows, Rows, places
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents
from transformer.training.step import TrainStep
from transformer.training.train_config import TrainConfig

T = TypeVar("T")
_BATCHES, _TOKENS = 16, 2**17  # limits of what is read of the training text
_CHARACTERS = 2**20  # of the corpus are compared with its tokens
_STREAMED_CHARACTERS = 2**23  # of a corpus without windows are tokenized, to find rows in them


class FixedBatches:
    """A source that cycles through these batches."""

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

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.taken = state_dict["taken"]

    def describe_last(self) -> str:
        return "a batch of the preflight"


@dataclass(frozen=True, kw_only=True)
class Subject(RunComponents):
    """A run before its first step.

    batches: the next ones of the source, which is restored. where: the position of the first one. kept: see `once`.
    """

    config: TrainConfig
    engine: Engine
    batches: list[Batch]
    where: str
    kept: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, components: RunComponents, config: TrainConfig, engine: Engine) -> Subject:
        """Read the batches that are checked."""
        source = components.source
        before = source.state_dict()
        batches, most = [source.next()], min(_BATCHES, source.steps_in_epoch or _BATCHES)
        where, tokens = source.describe_last(), batches[0].inputs.numel()
        while len(batches) < most and (tokens < _TOKENS or len(batches) < 2):
            batches.append(source.next())
            tokens += batches[-1].inputs.numel()
        source.load_state_dict(before)
        shared = {field.name: getattr(components, field.name) for field in fields(components)}
        return cls(**shared, config=config, engine=engine, batches=batches, where=where)

    def once(self, compute: Callable[[Subject], T]) -> T:
        """The result of `compute` for this subject, kept for the checks that share it."""
        if compute not in self.kept:
            self.kept[compute] = compute(self)
        found: T = self.kept[compute]
        return found

    # ---- text and batches ----

    @cached_property
    def validation_batches(self) -> list[Batch]:
        """The batches that the run is validated on."""
        return batching.validation_batches(self.validation, self.config.run.validation_windows)

    @cached_property
    def rows(self) -> LocatedRows:
        """The rows of `batches`. With `prompt_share`, and in a stream, the first input may be the end-of-text token in
        place of that of the text."""
        begins = bool(self.config.text.prompt_share) or self.training is None
        first = self.tokenizer.end_of_text_id if begins else None
        return places(Rows.of(self.batches), self.text, self.padding_ids, self.training is not None, first)

    @cached_property
    def validation_rows(self) -> LocatedRows:
        """The rows of `validation_batches`."""
        return places(Rows.of(self.validation_batches), self.validation.stream, self.padding_ids)

    @cached_property
    def text_row(self) -> Tensor:
        """(1, T) tokens: those of the row with least padding, without it."""
        rows = Rows.of(self.batches).inputs
        text = max((row[~np.isin(row, [ABSENT, *self.padding_ids])] for row in rows), key=len)
        if len(text) < 2:  # nothing but padding
            text = np.arange(rows.shape[1]) % self.model.config.vocab_size
        return torch.from_numpy(text)[None]

    @cached_property
    def text(self) -> TokenStream:
        """The tokens of the training text; of a stream, those of its beginning."""
        if self.training is not None:
            return self.training.stream
        return tokenize(self.read(_STREAMED_CHARACTERS), self.tokenizer)

    @cached_property
    def documents(self) -> list[tuple[Document, bool]]:
        """The first documents of the corpus, each with whether it is complete."""
        joined = list(join_pieces(self.read(_CHARACTERS)))
        cut = sum(len(document.text) for document in joined) > _CHARACTERS  # then the last may go on
        return [(document, not (cut and number == len(joined) - 1)) for number, document in enumerate(joined)]

    def read(self, characters: int) -> Iterator[Document]:
        """The beginning of the corpus, in the pieces in which the run reads it."""
        data, read = self.config.text, 0
        for piece in pieces(data.data, data.data_config, "train", data.clean, data.text_column, data.max_documents):
            yield piece
            read += len(piece.text)
            if read > characters:
                return

    @cached_property
    def padding_ids(self) -> set[int]:
        """Tokens that may be padding."""
        ids = {self.tokenizer.pad_id, self.validation.pad_id, self.tokenizer.end_of_text_id}
        return {id for id in ids if id is not None}

    @cached_property
    def fullest(self) -> Batch:
        """The batch with the most targets; if none has any, a batch of windows that do, if there are such windows."""
        fullest = max(self.batches, key=lambda batch: batch.n_targets)
        if self.training is None or fullest.n_targets:
            return fullest
        usable = batching.with_targets(self.training)
        return self.training.batch(usable[: len(fullest.inputs)]) if len(usable) else fullest

    def decoded(self, token: int) -> str:
        """A token as text, a special one too."""
        return self.tokenizer.decode([int(token)], skip_special=False)

    # ---- model and step ----

    @property
    def bf16(self) -> bool:
        """Whether the run multiplies in bf16."""
        return computes_in_bf16(self.engine.device, self.config.run.precision)

    @property
    def coarse(self) -> bool:
        """Whether results may differ from those in fp32 on a CPU by more than rounding."""
        return self.bf16 or self.engine.device.type != "cpu"

    @property
    def trained(self) -> bool:
        """Whether the initial weights are not random."""
        config = self.config.model
        return bool(config.init_from or config.embeddings_from or config.start_from_bigrams)

    def copy_of_model(self, dropout: bool = True) -> Transformer:
        """A copy on the device of the run, in training mode, that a check may change."""
        model = copy.deepcopy(self.model).to(self.engine.device).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        return model

    def hidden_train_step(self, dropout: bool = False) -> TrainStep:
        """The step of the run on a copy of the model for its hidden states alone: to save time, its vocabulary
        projection has one row.

        Matrices that start at zero (start_from_bigrams) are drawn at random, so that no layer's output is zero.
        """
        model = self.copy_of_model(dropout)
        model.head = Linear(model.config.d_model, 1, bias=model.head.bias is not None).to(model.device)
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
        if self.config.model.start_from_bigrams:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                for parameter in model.layers.parameters():
                    if parameter.dim() == 2 and not parameter.any():
                        parameter.normal_(std=parameter.shape[1] ** -0.5)
        return self.make_train_step(model, self.batches[0])

    def make_train_step(self, model: Transformer, batch: Batch, **options: Any) -> TrainStep:
        """The step of the run in one process, on a copy of the model and one batch.

        Args:
            options: changes of the run's configuration. Nothing is compiled unless they say so.
        """
        options = {"gradient_accumulation_steps": 1, "max_loss": float("inf"), "compile": False, **options}
        config, engine = self.config.with_options(**options), Engine(self.engine.device)
        return TrainStep(model, FixedBatches([batch]), self.tokenizer, config, engine)


def cut(batch: Batch, rows: int, length: int) -> Batch:
    """The first rows of a batch that have targets, and `length` positions of them, with targets."""
    learned = batch.targets != IGNORE_INDEX
    order = torch.argsort(~learned.any(dim=1), stable=True)[:rows]
    begin = 0
    if not bool(learned[order, :length].any()):  # as where a long prompt comes first
        begin = int(learned[order].any(dim=0).float().argmax())
        begin = min(begin, max(0, batch.inputs.shape[1] - length))
    part = (order, slice(begin, begin + length))
    return Batch(batch.inputs[part], batch.targets[part], batch.segment_ids[part])


def other_tokens(tokens: Tensor, first: int, stop: int, subject: Subject) -> Tensor:
    """The tokens, with all those in [first, stop) replaced by others that are not padding."""
    size, padding = subject.model.config.vocab_size, subject.padding_ids
    one, another = sorted(range(size - 1, max(-1, size - 3 - len(padding)), -1), key=lambda id: id in padding)[:2]
    changed = tokens.clone()
    changed[:, first:stop] = torch.where(tokens[:, first:stop] == one, another, one)
    return changed


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restores the states of all random generators afterwards."""
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])
