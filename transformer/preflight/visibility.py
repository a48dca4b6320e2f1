"""Checks of what a token attends to: all earlier tokens, also in a cache; no later ones, other documents or padding.

Dimensions: B batch · T window · D d_model
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data.batches import Batch
from transformer.inference import select_backend
from transformer.model import ModelConfig, Transformer
from transformer.preflight.check import Check, Expected
from transformer.preflight.measure import differing, max_difference, recorded
from transformer.preflight.small_run import random_batch, small_model
from transformer.preflight.subject import Subject, other_tokens

_PLACES = 4  # positions of a long window that are tried, spread over it
_SHORT = 32  # the longest window of which all positions are tried
_VOCABULARY = 64  # of the small model
_CLOSE = 1e-3  # of the size of the hidden states: the same numbers, summed in another order
_PADDED_ROWS = 4  # of the batches are tried


def causality(subject: Subject) -> Check:
    """Nothing before a token changes when it and those after it do; everything from it on does."""
    expected = Expected("a changed token changes nothing before it, and everything after")
    length, certain = subject.text_row.shape[1], not subject.trained  # trained weights may ignore a token
    places = list(range(length))
    if length > _SHORT:
        edges = [edge + side for edge in (128, 256) for side in (0, 1) if edge + side < length]
        places = sorted({0, *np.linspace(1, length - 1, _PLACES).astype(int).tolist(), *edges})
    by_suffix = {place: _changed(subject, place, length) for place in places}
    for place, changed in by_suffix.items():
        if changed[:place].any():
            first = int(changed.nonzero()[0])
            cause = f"The tokens from {place} on change the hidden state at {first}: the mask lets a token look ahead."
            return expected.failed(f"{first} of {length} depends on {place} or later", cause)
    for place, changed in by_suffix.items():
        if not changed[place:].all():
            blind = place + int((~changed[place:]).nonzero()[0])
            cause = f"The hidden state at {blind} does not depend on the token there: it is not connected."
            return expected.failed(f"{blind} of {length} does not depend on itself", cause, certain)
        if place and not _changed(subject, 0, place)[place]:
            cause = f"Nothing before {place} changes the hidden state there: the mask hides the past."
            return expected.failed(f"{place} of {length} depends on nothing before it", cause, certain)
    n_first = max(1, length // 8)
    if n_first + _reach(subject) > length and not _changed(subject, 0, n_first)[-1]:
        cause = "Changing the beginning of the window changes nothing at its end: the mask hides what is far away."
        return expected.failed("the last token does not depend on the first ones", cause, certain)
    return expected.passed(f"holds at {len(places)} places, the first and the last of {length} among them")


def _reach(subject: Subject) -> int:
    """How many tokens a token attends to in the layer where it attends to most."""
    config = subject.model.config
    return max(config.window_of(layer) or subject.text_row.shape[1] for layer in range(config.n_layers))


def documents_apart(subject: Subject) -> Check:
    """With `separate_documents` no token attends to another document; without it, to all tokens before it."""
    apart, length = subject.config.text.separate_documents, subject.text_row.shape[1]
    expected = Expected("no attention" if apart else "attention goes on (no --separate-documents)")
    if length < 4:
        return expected.passed("the window is too short to tell")
    middle = length // 2
    changed = _changed(subject, 0, middle, (torch.arange(length) >= middle).long()[None])[middle:]
    measured = f"{int(changed.sum())} of {len(changed)} places of the second document depend on the first"
    if apart and changed.any():
        cause = "The mask of the run lets a token attend to the document before its own, despite --separate-documents."
        return expected.failed(measured, cause)
    changed = changed[: _reach(subject) - 1]  # a sliding window may hide the first document from the rest
    if not apart and not changed.all():
        cause = "Attention stops at the beginning of a document, though --separate-documents is not given."
        return expected.failed(measured, cause, certain=not changed.any() and not subject.trained)
    return expected.passed(measured)


def padding_unseen(subject: Subject) -> Check:
    """Padding changes nothing at real tokens: in the model's own mask, and in the batches of the run."""
    expected = Expected("padding changes nothing at real tokens")
    if where := _attended_padding(subject):
        cure = "pad on the right, pack the text (the default), or give the model a mask for padding"
        return expected.failed(where, f"{where}, and the run has no mask for it: {cure}.")
    model, tokens = _small(subject)
    length, n_padding = tokens.shape[1], max(1, tokens.shape[1] // 4)
    if length < 2:
        return expected.passed("a window of one token is never padded")
    place = torch.arange(length, device=tokens.device)[None]
    for side, real in (("left", place >= n_padding), ("right", place < length - n_padding)):
        with torch.no_grad():
            filled = (tokens.where(real, id % model.config.vocab_size) for id in (3, 10))
            outputs = [model.hidden_states(one, real) for one in filled]
        if (differing(*outputs) & real).any():
            cause = f"Padding on the {side} changes the hidden states of real tokens: attention_mask_BT is not applied."
            return expected.failed(f"attended to on the {side}", cause)
    if type(model.config) is ModelConfig:  # the legacy model counts padding in its positions
        with torch.no_grad():
            alone = model.hidden_states(tokens[:, n_padding:])
            shifted = model.hidden_states(tokens, place >= n_padding)
        if not max_difference(shifted[:, n_padding:], alone) <= _CLOSE:
            cause = "After padding on the left a text has other hidden states than without it: positions count padding."
            return expected.failed("padding changes the positions", cause)
    share = float(subject.rows.padding.mean())
    return expected.passed(f"on the left and on the right; {share:.1%} of the inputs of the run are padding")


def cached(subject: Subject) -> Check:
    """Decoding with the cache gives the logits of one pass, in the model and in its inference backend."""
    expected = Expected("the same as without a cache, to 1/1000")
    model, tokens = _small(subject)
    length, worst = tokens.shape[1], 0.0
    with torch.no_grad():
        expected_logits = model.head(model.hidden_states(tokens)[0])
    for decoder, first in ((model, 0), (select_backend(model, "fp32"), max(1, length // 2))):
        cache = decoder.new_cache(1, length)
        decoder.prefill(tokens[0, :first].tolist(), cache, 0)
        with torch.no_grad():
            logits = torch.cat([decoder.decode(tokens[:, i], cache) for i in range(first, length)])
        worst = max(worst, max_difference(logits, expected_logits[first:]))
    measured = f"{worst:.1e} apart, without a prompt and with one of {max(1, length // 2)} tokens"
    if worst <= _CLOSE:
        return expected.passed(measured)
    cause = "Decoding with the key-value cache gives other logits than one pass: look at its positions and mask."
    return expected.failed(measured, cause)


# ---- what the checks share ----


def _small(subject: Subject) -> tuple[Transformer, Tensor]:
    """A small model of the same architecture in evaluation mode, and (1, T) tokens for it."""
    model = small_model(subject, _VOCABULARY, _SHORT).eval()
    return model, random_batch(model, rows=1).inputs.to(subject.engine.device)


def _hidden(subject: Subject, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """(1, T, D) hidden states of (1, T) tokens as a step of the run computes them: with gradients, in its precision.

    segment_ids: (1, T); None: the row is one document.
    """
    train_step, zeros = subject.once(Subject.hidden_train_step), torch.zeros_like(tokens)
    batch = Batch(tokens, zeros, zeros if segment_ids is None else segment_ids)
    with torch.enable_grad(), recorded([("last layer", train_step.model.layers[-1])]) as recording:
        train_step.summed_loss(batch)
    return recording["last layer"][1].float().cpu()


def _unchanged(subject: Subject) -> Tensor:
    return _hidden(subject, subject.text_row)


def _changed(subject: Subject, first: int, stop: int, segment_ids: Tensor | None = None) -> Tensor:
    """(T,) bool: where the hidden states of the text row change if its tokens in [first, stop) do."""
    before = subject.once(_unchanged) if segment_ids is None else _hidden(subject, subject.text_row, segment_ids)
    tokens = other_tokens(subject.text_row, first, stop, subject)
    return differing(before, _hidden(subject, tokens, segment_ids))[0]


def _attended_padding(subject: Subject) -> str:
    """Where tokens attend to padding in the run's own batches, in words; an empty string if nowhere."""
    for what, rows, batches in (
        ("training", subject.rows, subject.batches),
        ("validation", subject.validation_rows, subject.validation_batches),
    ):
        for row in np.flatnonzero(rows.padding.any(axis=1) & rows.real.any(axis=1))[:_PADDED_ROWS]:
            batch, place = batches[rows.batch[row]], rows.place[row]
            tokens, segment_ids = batch.inputs[place : place + 1], batch.segment_ids[place : place + 1]
            padding = torch.from_numpy(rows.padding[row : row + 1, : tokens.shape[1]].copy())
            other = _hidden_with_other_padding(subject, tokens, segment_ids, padding)
            if (differing(_hidden(subject, tokens, segment_ids), other) & ~padding).any():
                n_left = int(rows.padding[row].argmin())
                side = f"{n_left} tokens of padding on the left" if n_left else "padding"
                share = float(rows.padding.any(axis=1).mean())
                return f"Real tokens attend to {side} of a {what} row ({share:.0%} of the rows have padding)"
    return ""


def _hidden_with_other_padding(subject: Subject, tokens: Tensor, segment_ids: Tensor, padding: Tensor) -> Tensor:
    """Hidden states with other embeddings at padding (1, T). Its ids stay, since the model may mask it by them."""

    def change(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.where(~padding.to(output.device)[..., None], output.std())

    handle = subject.once(Subject.hidden_train_step).model.token_embedding.register_forward_hook(change)
    try:
        return _hidden(subject, tokens, segment_ids)
    finally:
        handle.remove()
