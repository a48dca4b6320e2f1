"""What a run will need: memory, time and money, and its loss if a run like it was measured (experiments/LOG.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from transformer.data.batches import Batch
from transformer.preflight.check import Check, Expected
from transformer.preflight.learning import real_step
from transformer.preflight.subject import Subject, cut
from transformer.training.memory_limits import free_bytes

_PASSES = 40  # over a text: from about 16 on little is gained, from 40 on nothing (Muennighoff et al., 2023)
_SPARE = 0.9  # of the memory that is free may be used
_UNCERTAIN = 0.05  # of a loss, either way, between one run and another like it


@dataclass(frozen=True)
class Reference:
    """A run that was measured: validation losses in nats per token, by the number of tokens trained on.

    text: its data. options: those that another run has to share for its losses to be comparable.
    """

    what: str
    text: str
    options: dict[str, object]
    curve: tuple[tuple[float, float], ...]


_SMALL = dict(preset="modern", vocab_size=8192, d_model=256)
_WITH_BIGRAMS = dict(_SMALL, n_layers=4, optimizer="muon", start_from_bigrams=True, whole_tokens=("<unk>",))
_SPEEDRUN = (4.590, 4.308, 4.177, 4.055, 3.973, 3.875, 3.847, 3.796, 3.804)  # each after 300 steps more
REFERENCES = (
    Reference(
        "English Wikipedia of 2015, modern, 6 layers, AdamW, ten minutes (2026-11-23)",
        "enwiki-2015",
        dict(_SMALL, n_layers=6, optimizer="adamw", context_length=512),
        ((1.95e6, 6.121),),
    ),
    Reference(
        "WikiText-2 with <unk>, speedrun, context 512 (2026-11-24)",
        "wikitext-2",
        dict(_WITH_BIGRAMS, context_length=512),
        tuple((4096.0 * 300 * number, loss) for number, loss in enumerate(_SPEEDRUN, start=1)),
    ),
    Reference(
        "WikiText-2 with <unk>, sprint, context 256 (2026-11-24)",
        "wikitext-2",
        dict(_WITH_BIGRAMS, context_length=256),
        ((219 * 4096.0, 4.471), (246 * 4096.0, 4.422), (2302 * 4096.0, 3.853)),
    ),
)


def memory(subject: Subject) -> Check:
    """The weights, their gradients, the optimizer's state, activations and logits fit into the free memory."""
    needed = _needed_bytes(subject)
    free, total = free_bytes(subject.engine.device), sum(needed.values())
    parts = ", ".join(f"{what} {_size(amount)}" for what, amount in needed.items())
    measured = f"about {_size(total)} ({parts})"
    if free is None:
        return Expected("the free memory is not known here").passed(measured)
    expected = Expected(f"less than {_SPARE:.0%} of the {_size(free)} that are free")
    if total <= _SPARE * free:
        return expected.passed(measured)
    cause = f"A step needs about {_size(total)}: halve --batch-size and double --gradient-accumulation-steps."
    return expected.failed(measured, cause, certain=total > free)


def _needed_bytes(subject: Subject) -> dict[str, float]:
    """What a step needs beyond what the process has allocated already, in bytes. Activations are those that autograd
    keeps of one row, times the rows of a batch."""
    model, engine = subject.model, subject.engine
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    n_trained = sum(parameter.numel() for parameter in trained)
    moments = 2 * n_trained
    if subject.config.optimization.optimizer == "muon":  # it keeps one number for each of a layer's matrices, AdamW two
        layers = {id(parameter) for parameter in model.layers.parameters()}
        moments -= sum(p.numel() for p in trained if id(p) in layers and p.dim() == 2)
    rows, length = subject.batches[0].inputs.shape
    shards = engine.world_size if engine.sharded else 1
    return {
        "weights": 0.0 if engine.device.type == "cpu" else 4.0 * model.parameter_count() / shards,
        "gradients": 4.0 * n_trained / shards,
        "optimizer": 4.0 * moments / shards,
        "activations": rows * _kept_by_autograd(subject),
        "logits": 4.0 * rows * length * model.config.vocab_size,  # their gradient is in their place, or half as large
    }


def _kept_by_autograd(subject: Subject) -> float:
    """Bytes that autograd keeps for the backward pass of one row of a batch, without logits."""
    train_step = subject.hidden_train_step(dropout=True)
    tensors = (*train_step.model.parameters(), *train_step.model.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = cut(subject.batches[0], 1, subject.batches[0].inputs.shape[1])
    row = Batch(row.inputs, torch.zeros_like(row.targets), row.segment_ids)  # the projection of this copy has one row
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = train_step.summed_loss(row)
    del loss
    return float(sum(kept.values()))


def _batch_seconds(subject: Subject) -> float | None:
    """Seconds that a batch takes; None where no step was made."""
    return subject.once(real_step).seconds if real_step in subject.kept else None


def _planned_steps(subject: Subject) -> tuple[int | None, float]:
    """Steps of the run, None if unknown, and targets in one of them."""
    config, in_epoch, batch_seconds = subject.config, subject.source.steps_in_epoch, _batch_seconds(subject)
    accumulated = config.optimization.gradient_accumulation_steps
    budget = config.run.budget(None if in_epoch is None else in_epoch / accumulated)
    n_targets = sum(batch.n_targets for batch in subject.batches) / len(subject.batches)
    tokens = n_targets * accumulated * subject.engine.world_size
    steps = [budget.steps] if budget.steps else []
    steps += [math.ceil(budget.tokens / max(1.0, tokens))] if budget.tokens else []
    steps += [math.ceil(budget.seconds / (batch_seconds * accumulated))] if budget.seconds and batch_seconds else []
    return min(steps, default=None), tokens


def passes(subject: Subject) -> Check:
    """The run does not read a text so often that it memorizes it."""
    expected = Expected(f"at most {_PASSES}")
    steps, in_epoch = _planned_steps(subject)[0], subject.source.steps_in_epoch
    if steps is None or in_epoch is None:
        return expected.passed("a stream" if in_epoch is None else "as many as time allows")
    number = steps * subject.config.optimization.gradient_accumulation_steps / in_epoch
    if number <= _PASSES:
        return expected.passed(f"{number:.3g}")
    cause = f"The run goes over the text {number:,.0f} times and memorizes it: lower --max-epochs, or add --patience."
    return expected.warned(f"{number:,.3g}", cause)


def forecast(subject: Subject) -> Check:
    """Tokens, steps, time, cost, and the loss of a run like it if one was measured."""
    run, expected, batch_seconds = subject.config.run, Expected("for your information"), _batch_seconds(subject)
    most_seconds = run.budget(subject.source.steps_in_epoch).seconds
    steps, tokens = _planned_steps(subject)
    if steps is None:
        return expected.passed(f"about {most_seconds or 0:.0f} s")
    parts = [f"{steps:,} steps, {_count(steps * tokens)} tokens"]
    if batch_seconds is not None:
        seconds = batch_seconds * subject.config.optimization.gradient_accumulation_steps
        total = min(steps * seconds, most_seconds or math.inf)
        parts.append(f"{_duration(total)} ({seconds:.2g} s a step{', before compiling' if run.compile else ''})")
        if run.price_per_hour:
            parts.append(f"{total / 3600 * run.price_per_hour:.2f} at {run.price_per_hour:g} an hour")
    parts.append(_expected_loss(subject, steps * tokens))
    return expected.passed(" · ".join(parts))


def _expected_loss(subject: Subject, tokens: float) -> str:
    """The validation loss that a run like this one had after this many tokens, in words, or that none is known."""
    config = subject.config
    own = str(config.text.data).lower().rstrip("/").rsplit("/", 1)[-1] + f" {config.text.data_config or ''}"
    for reference in REFERENCES:
        same = config.options().items() >= reference.options.items()
        if reference.text not in own or not same or config.model.init_from or config.text.tokenizer:
            continue
        loss, (least, most) = loss_at(reference, tokens), (reference.curve[0][0], reference.curve[-1][0])
        if least * (1 - _UNCERTAIN) <= tokens <= most * (1 + _UNCERTAIN):
            perplexity = f"{math.exp(loss * (1 - _UNCERTAIN)):.0f} to {math.exp(loss * (1 + _UNCERTAIN)):.0f}"
        else:
            perplexity = f"{'below' if tokens > most else 'above'} {math.exp(loss):.0f}"
        return f"perplexity per token {perplexity}, after {reference.what}"
    return "no reference for the perplexity of this text, tokenizer and model"


def loss_at(reference: Reference, tokens: float) -> float:
    """The loss of a reference after this many tokens, interpolated in their logarithm between two measurements."""
    measured, losses = zip(*reference.curve, strict=True)
    return float(np.interp(math.log(tokens), np.log(measured), losses))


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
