"""One run of the story: the product's trainer and preflight on a planted source, and what is measured of the result.

Dimensions: N rows · T window length
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.story.layouts import (
    ChangedBatches,
    ExampleBatches,
    Examples,
    held_out_lines,
    line_examples,
    overwrite_last_target,
)
from experiments.story.variants import PRETRAINED, Variant
from transformer.data.batches import IGNORE_INDEX, Batch, BatchSource, EpochBatches, Windows
from transformer.data.document import Document
from transformer.data.tokenize import TokenStream, tokenize
from transformer.data.tokenizer import Tokenizer
from transformer.files import atomic_write
from transformer.hub.embeddings import pretrained_embeddings, use_embeddings
from transformer.hub.text_sources import documents
from transformer.legacy import model_class, saved_config
from transformer.model import Transformer
from transformer.preflight import Report, preflight
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents
from transformer.training.train_config import TrainConfig
from transformer.training.trainer import Trainer

WEIGHTS = str(Path(__file__).parents[2] / "weights")
MARKER = "[SEP]"
_ROWS = 16  # scored at once


@dataclass(frozen=True)
class Settings:
    """What all runs share.

    few: tokens of the text for those that see it again and again. held_out: lines that are measured on.
    """

    data: str
    data_config: str | None
    cache: Path
    steps: int = 500
    length: int = 128
    batch_size: int = 8
    d_model: int = 128
    few: int = 60_000
    held_out: int = 200

    def options(self, name: str, variant: Variant) -> dict[str, Any]:
        """The options of the training."""
        pretrained = {"embeddings_from": WEIGHTS} if name in PRETRAINED else {}
        return {
            "data": self.data,
            "data_config": self.data_config,
            "output": str(self.cache / name),
            "preset": "blog",
            "context_length": self.length,
            "d_model": self.d_model,
            "n_layers": 2,
            "batch_size": self.batch_size,
            "learning_rate": 1e-3,
            "max_steps": self.steps,
            "sample_prompt": " The",
            "device": "cpu",
            **pretrained,
            **variant.options,
        }


class Text:
    """The text of all runs as tokens: of the model in weights/, whose embeddings one turn needs.

    marker: the id of [SEP], which is no token of that tokenizer and is added behind it.
    """

    def __init__(self, settings: Settings) -> None:
        self.tokenizer = Tokenizer.load(WEIGHTS)
        marked = Tokenizer.load(WEIGHTS).backend
        marked.add_special_tokens([MARKER])
        self.marked_tokenizer = Tokenizer(marked, self.tokenizer.end_of_text, self.tokenizer.pad)
        self.marker = self.marked_tokenizer.vocab_size - 1
        self.end = self.tokenizer.end_of_text_id
        read = partial(documents, settings.data, settings.data_config)
        training, validation = list(read("train")), list(read("validation"))
        self.training, self.validation = tokenize(training, self.tokenizer), tokenize(validation, self.tokenizer)
        self.training_lines, self.validation_lines = self._lines(training), self._lines(validation)
        spread = np.linspace(0, len(self.validation_lines) - 1, settings.held_out).round().astype(int)
        self.held_out = [self.validation_lines[i] for i in sorted({*spread.tolist()})]

    def _lines(self, found: list[Document]) -> list[list[int]]:
        """Token ids of every line that is not blank, with its end; of at least two tokens."""
        lines = [line for document in found for line in document.text.splitlines(keepends=True) if line.strip()]
        return [ids for ids in self.tokenizer.encode_documents(lines) if len(ids) > 1]


@dataclass(frozen=True)
class Run:
    """All that a training needs, as it is before the first step.

    training: the windows behind `source`; None where it makes its rows itself. reported: the validation text laid out
    as the training text is, mistakes and all. held_out: what every run is measured on.
    """

    config: TrainConfig
    tokenizer: Tokenizer
    model: Transformer
    source: BatchSource
    training: Windows | None
    validation: Windows
    reported: Examples
    held_out: Examples

    @classmethod
    def build(cls, name: str, variant: Variant, settings: Settings, text: Text) -> Run:
        config = TrainConfig.from_options(**settings.options(name, variant))
        tokenizer = text.marked_tokenizer if variant.layout == "lines with a marker" else text.tokenizer
        in_lines = variant.layout.startswith("lines")
        fields = dataclasses.asdict(config.model.architecture(tokenizer.vocab_size))
        fields["pad_token_id"] = text.end if in_lines and variant.masked else None
        architecture = saved_config(fields | variant.architecture)  # with concatenated heads it is a mainline model
        torch.manual_seed(config.run.seed)
        model = model_class(architecture)(architecture)
        if config.model.embeddings_from:
            use_embeddings(model, pretrained_embeddings(config.model.embeddings_from))
        with torch.no_grad():
            model.token_embedding.weight.mul_(variant.embedding_scale)
        model.token_embedding.weight.requires_grad_(not config.model.freeze_embeddings)

        def windows(stream: TokenStream, span: tuple[int, int] | None = None, stride: int | None = None) -> Windows:
            return Windows(stream, settings.length, text.end, span, stride, seed=config.run.seed)

        training = None
        validation = windows(text.validation)
        if in_lines:
            lay_out = partial(
                line_examples,
                length=settings.length,
                pad=text.end,
                marker=text.marker if variant.layout == "lines with a marker" else None,
                count_padding=variant.layout == "lines with padding counted",
            )
            source: BatchSource = ExampleBatches(
                lay_out(text.training_lines), config.optimization.batch_size, config.run.seed
            )
            reported = lay_out(text.held_out)
        else:
            span = (0, min(settings.few, len(text.training.tokens))) if variant.few else None
            training = windows(text.training, span, config.text.window_stride)
            source = EpochBatches(training, config.optimization.batch_size, config.run.seed)
            every = max(1, len(validation) // settings.held_out)
            batch = validation.batch(range(0, len(validation) - 1, every))  # the last one is not full
            if variant.layout == "last target overwritten":
                change = partial(overwrite_last_target, end=text.end)
                source, batch = ChangedBatches(source, change), change(batch)
            reported = Examples(batch.inputs.numpy(), batch.targets.numpy())
        held_out = held_out_lines(text.held_out, settings.length, text.end, left=in_lines)
        return cls(config, tokenizer, model, source, training, validation, reported, held_out)

    def preflight(self) -> Report:
        """What preflight says of it."""
        parts = RunComponents(self.tokenizer, self.model, self.source, self.training, self.validation)
        return preflight(parts, self.config, Engine(self.config.run.device))

    def train(self, text: Text) -> dict[str, Any]:
        """Train it, and measure."""
        engine = Engine(self.config.run.device)
        try:
            rows = list(_batches(self.held_out))
            Trainer(self.model.train(), self.tokenizer, self.source, rows, self.config, engine).run()
        finally:
            engine.close()
        output = Path(self.config.run.output)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        validations = [line for line in lines if "validation_loss" in line]
        losses = [line["loss"] for line in lines if "loss" in line]
        shutil.rmtree(self.config.run.checkpoints)  # the run is over; its model stays
        return {
            "honest": score(self.model, self.held_out)["all"]["nats"],
            "reported": score(self.model, self.reported, text.end, text.marker),
            "end_at_last_position": end_probability(self.model, self.reported, text.end),
            "curve": [[line["step"], line["validation_loss"]] for line in validations],
            "training_curve": [float(np.mean(part)) for part in np.array_split(losses, min(50, len(losses)))],
            "sample": validations[-1]["sample"],
            "seconds": validations[-1]["seconds"],
            "steps": validations[-1]["step"],
            "tokens": lines[-1]["tokens"],
            "parameters": self.model.parameter_count(),
        }


@torch.inference_mode()
def score(model: Transformer, examples: Examples, end: int = -1, marker: int = -1) -> dict[str, dict[str, float]]:
    """Mean nats and share of the targets: of all, and of those that are end-of-text or padding, [SEP], or text."""
    losses, kinds = [], []
    model.eval()
    for batch in _batches(examples):
        counted = batch.targets != IGNORE_INDEX
        logits = model(batch.inputs)[counted].float()
        targets = batch.targets[counted]
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        kinds.append(targets)
    nats, targets = torch.cat(losses).double(), torch.cat(kinds)
    parts = {
        "all": torch.ones_like(targets, dtype=torch.bool),
        "end": targets == end,
        "marker": targets == marker,
        "text": (targets != end) & (targets != marker),
    }
    return {
        name: {"nats": float(nats[part].mean()), "share": float(part.double().mean())}
        for name, part in parts.items()
        if part.any()
    }


@torch.inference_mode()
def end_probability(model: Transformer, examples: Examples, end: int) -> dict[str, float]:
    """The mean probability of end-of-text at the last position of the rows, and at the one before."""
    total = np.zeros(2)
    model.eval()
    for batch in _batches(examples):
        total += model(batch.inputs)[:, -2:].float().softmax(-1)[..., end].sum(0).double().numpy()
    before, last = total / len(examples.inputs)
    return {"last": float(last), "before": float(before)}


def _batches(examples: Examples) -> Iterator[Batch]:
    for start in range(0, len(examples.inputs), _ROWS):
        yield examples.batch(slice(start, start + _ROWS))


def kept(path: Path, make: Any) -> dict[str, Any]:
    """What is in this JSON file; made and written first where it is not there."""
    if not path.exists():
        with atomic_write(path) as partial_path:
            partial_path.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))
