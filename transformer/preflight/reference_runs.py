"""Runs whose losses were measured, by which the loss of a run like them is predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformer.preflight.subject import Subject


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


def expected_loss(subject: Subject, tokens: float) -> str:
    """The validation loss that a run like this one had after this many tokens, in words, or that none is known."""
    config = subject.config
    own = str(config.text.data).lower().rstrip("/").rsplit("/", 1)[-1] + f" {config.text.data_config or ''}"
    for reference in REFERENCES:
        same = config.options().items() >= reference.options.items()
        if reference.text not in own or not same or config.model.init_from or config.text.tokenizer:
            continue
        loss, (least, most) = loss_at(reference, tokens), (reference.curve[0][0], reference.curve[-1][0])
        if least * (1 - _UNCERTAIN) <= tokens <= most * (1 + _UNCERTAIN):
            low, high = (math.exp(loss * (1 + side * _UNCERTAIN)) for side in (-1, 1))
            return f"perplexity per token {low:.0f} to {high:.0f}, after {reference.what}"
        side = "below" if tokens > most else "above"
        return f"perplexity per token {side} {math.exp(loss):.0f}, after {reference.what}"
    return "no reference for the perplexity of this text, tokenizer and model"


def loss_at(reference: Reference, tokens: float) -> float:
    """The loss of a reference after this many tokens, interpolated in their logarithm between two measurements."""
    before = [point for point in reference.curve if point[0] <= tokens] or [reference.curve[0]]
    after = [point for point in reference.curve if point[0] >= tokens] or [reference.curve[-1]]
    (x0, y0), (x1, y1) = before[-1], after[0]
    if x0 == x1:
        return y0
    return y0 + (y1 - y0) * math.log(tokens / x0) / math.log(x1 / x0)
