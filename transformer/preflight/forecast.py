"""What a run will take: memory, time and money, and where it may end if a run like it was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from transformer.data.batches import IGNORE_INDEX
from transformer.preflight.check import Check
from transformer.preflight.subject import Subject, cut
from transformer.training.memory_limits import free_bytes

_PASSES = 40  # over a text: from about 16 on little is gained, from 40 on nothing (Muennighoff et al., 2023)
_SPARE = 0.9  # of the memory that is free may be used


@dataclass(frozen=True)
class Reference:
    """A run that was measured (experiments/LOG.md): validation loss in nats per token, by tokens learned from.

    text: its data; options: what another run has to have in common with it for its losses to compare.
    """

    what: str
    text: str
    options: dict[str, object]
    curve: tuple[tuple[float, float], ...]


_SMALL = dict(preset="modern", vocab_size=8192, d_model=256)
_WITH_BIGRAMS = dict(_SMALL, n_layers=4, optimizer="muon", start_from_bigrams=True, whole_tokens=("<unk>",))
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
        tuple(
            (4096.0 * 300 * (i + 1), loss)
            for i, loss in enumerate((4.590, 4.308, 4.177, 4.055, 3.973, 3.875, 3.847, 3.796, 3.804))
        ),
    ),
    Reference(
        "WikiText-2 with <unk>, sprint, context 256 (2026-11-24)",
        "wikitext-2",
        dict(_WITH_BIGRAMS, context_length=256),
        ((219 * 4096.0, 4.471), (246 * 4096.0, 4.422), (2302 * 4096.0, 3.853)),
    ),
)
_UNCERTAIN = 0.05  # of a loss, either way, between one run and another like it


def memory(subject: Subject) -> Check:
    """The weights, their gradients, the optimizer's state, activations and logits fit into what is free."""
    name = "memory"
    needed = needed_bytes(subject)
    free = free_bytes(subject.engine.device)
    total = sum(needed.values())
    parts = ", ".join(f"{what} {_size(amount)}" for what, amount in needed.items())
    measured = f"about {_size(total)} ({parts})"
    if free is None:
        return Check(name, measured, "the free memory is not known here")
    expected = f"less than {_SPARE:.0%} of the {_size(free)} that are free"
    if total <= _SPARE * free:
        return Check(name, measured, expected)
    cause = (
        f"A step needs about {_size(total)} and {_size(free)} are free: halve --batch-size and double "
        "--gradient-accumulation-steps, or "
        "take a smaller model or context."
    )
    return Check(name, measured, expected, "fail" if total > free else "warn", cause)


def needed_bytes(subject: Subject) -> dict[str, float]:
    """What a step takes beyond what the process has already, in bytes.

    Activations are measured: what autograd keeps of a single row, times the rows of a batch.
    """
    model, config = subject.model, subject.config
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    n_trained = sum(parameter.numel() for parameter in trained)
    layers = {id(parameter) for parameter in model.layers.parameters()}
    one_moment = [p for p in trained if config.optimization.optimizer == "muon" and id(p) in layers and p.dim() == 2]
    states = 8.0 * n_trained - 4.0 * sum(parameter.numel() for parameter in one_moment)
    weights = 0.0 if subject.engine.device.type == "cpu" else 4.0 * model.parameter_count()
    rows, length = subject.batches[0].inputs.shape
    activations = rows * _kept_by_autograd(subject)
    logits = 4.0 * rows * length * model.config.vocab_size  # and their gradient, in their place or half as precise
    shards = subject.engine.world_size if subject.engine.sharded else 1
    return {
        "weights": weights / shards,
        "gradients": 4.0 * n_trained / shards,
        "optimizer": states / shards,
        "activations": activations,
        "logits": logits,
    }


def planned_steps(subject: Subject, step_seconds: float | None) -> tuple[int | None, float]:
    """Steps of the run, None if unknown, and targets in one of them.

    Args:
        step_seconds: seconds of a batch.
    """
    config, in_epoch = subject.config, subject.source.steps_in_epoch
    budget = config.run.budget(None if in_epoch is None else in_epoch / config.optimization.gradient_accumulation_steps)
    tokens = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in subject.batches) / len(subject.batches)
    tokens *= config.optimization.gradient_accumulation_steps * subject.engine.world_size
    steps = [budget.steps] if budget.steps else []
    steps += [math.ceil(budget.tokens / max(1.0, tokens))] if budget.tokens else []
    if budget.seconds and step_seconds:
        steps.append(math.ceil(budget.seconds / (step_seconds * config.optimization.gradient_accumulation_steps)))
    return min(steps, default=None), tokens


def passes(subject: Subject, step_seconds: float | None) -> Check:
    """The run does not go over a text so often that it memorizes it."""
    name, expected = "passes over the text", f"at most {_PASSES}"
    steps, _ = planned_steps(subject, step_seconds)
    in_epoch = subject.source.steps_in_epoch
    if steps is None or in_epoch is None:
        return Check(name, "a stream" if in_epoch is None else "as many as time allows", expected)
    number = steps * subject.config.optimization.gradient_accumulation_steps / in_epoch
    if number <= _PASSES:
        return Check(name, f"{number:.3g}", expected)
    cause = (
        f"The run goes over the text {number:,.0f} times: a model memorizes it, and its validation loss rises "
        "long before the end (the best model is kept); lower --max-epochs or --max-steps, add --patience or text."
    )
    return Check(name, f"{number:,.3g}", expected, "warn", cause)


def forecast(subject: Subject, step_seconds: float | None) -> Check:
    """Tokens, steps, time, cost, and the loss of a run like it if one was measured."""
    config = subject.config
    budget = config.run.budget(subject.source.steps_in_epoch)
    seconds = None if step_seconds is None else step_seconds * config.optimization.gradient_accumulation_steps
    steps, tokens = planned_steps(subject, step_seconds)
    if steps is None:
        return Check("forecast", f"about {budget.seconds or 0:.0f} s", "for your information")
    n_steps, n_tokens = steps, steps * tokens
    parts = [f"{n_steps:,} steps, {_count(n_tokens)} tokens"]
    if seconds is not None:
        total = min(n_steps * seconds, budget.seconds or math.inf)
        parts.append(f"{_duration(total)} ({seconds:.2g} s a step{', before compiling' if config.run.compile else ''})")
        if config.run.price_per_hour:
            parts.append(f"{total / 3600 * config.run.price_per_hour:.2f} at {config.run.price_per_hour:g} an hour")
    parts.append(expected_loss(subject, n_tokens))
    return Check("forecast", " · ".join(parts), "for your information")


def expected_loss(subject: Subject, tokens: float) -> str:
    """The validation loss that a run like this one had after this many tokens, in words; honest where none is known."""
    config = subject.config
    own = str(config.data.data).lower().rstrip("/").rsplit("/", 1)[-1] + f" {config.data.data_config or ''}"
    for reference in REFERENCES:
        same = config.options().items() >= reference.options.items()
        if reference.text not in own or not same or config.model.init_from or config.data.tokenizer:
            continue
        loss, (least, most) = loss_at(reference, tokens), (reference.curve[0][0], reference.curve[-1][0])
        if least * (1 - _UNCERTAIN) <= tokens <= most * (1 + _UNCERTAIN):
            low, high = (math.exp(loss * (1 + side * _UNCERTAIN)) for side in (-1, 1))
            return f"perplexity per token {low:.0f} to {high:.0f}, after {reference.what}"
        side = "below" if tokens > most else "above"
        return f"perplexity per token {side} {math.exp(loss):.0f}, after {reference.what}"
    return "no reference for the perplexity of this text, tokenizer and model"


def loss_at(reference: Reference, tokens: float) -> float:
    """The loss of a reference after this many tokens, between two measurements in proportion to the logarithm."""
    before = [point for point in reference.curve if point[0] <= tokens] or [reference.curve[0]]
    after = [point for point in reference.curve if point[0] >= tokens] or [reference.curve[-1]]
    (x0, y0), (x1, y1) = before[-1], after[0]
    if x0 == x1:
        return y0
    return y0 + (y1 - y0) * math.log(tokens / x0) / math.log(x1 / x0)


def _kept_by_autograd(subject: Subject) -> float:
    """Bytes that are kept for the backward pass of one row of a batch."""
    model = subject.headless  # what is kept of the logits is counted by itself
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    own |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = cut(subject.batches[0], 1, subject.batches[0].inputs.shape[1])
    row = type(row)(row.inputs, torch.zeros_like(row.targets), row.segment_ids)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = subject.headless_stepper.nats(row, subject.headless_stepper.module)
    del loss
    return float(sum(kept.values()))


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
