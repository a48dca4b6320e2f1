"""Which tokens a token attends to: no later ones, no other documents, no padding; all earlier ones, with a cache too.

Causality and documents go through the loss, the precision, the mask and the kernel of the run, in training mode.

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
from transformer.preflight import probe
from transformer.preflight.check import Expected, Finding
from transformer.preflight.measure import differing, max_difference, recorded
from transformer.preflight.subject import Subject, other_tokens
from transformer.training.step import Stepper

_PLACES = 4  # of a long window, spread over it, before and after which everything is changed
_SHORT = 32  # tokens of a window of which all places are tried
_VOCABULARY = 64  # of the small model
_CLOSE = 1e-3  # of the size of the hidden states: the same numbers, summed in another order
_PADDED_ROWS = 4  # of the batches are tried


def causality(subject: Subject) -> Finding:
    """Nothing before a token changes when it and those after it do; everything from it on does.

    Tried at the first, the last, and some places between, on both sides of where kernels end their blocks; of a short
    window at all. What trained weights do not attend to is no mistake of the mask: of those only the first can fail.
    """
    expected = Expected("a changed token changes nothing before it, and everything after")
    length, certain = subject.text_row.shape[1], not subject.trained
    places, by_suffix, by_prefix = _dependence(subject)
    for row, place in enumerate(places):
        if by_suffix[row, :place].any():
            first = int(by_suffix[row, :place].nonzero()[0])
            return expected.failed(
                f"{first} of {length} depends on {place} or later",
                f"The tokens from {place} on change the hidden state at {first}, before them: the causal mask or the "
                "attention kernel lets a token look ahead, so the loss is too low; correct the mask.",
            )
    for row, place in enumerate(places):
        if not by_suffix[row, place:].all():
            blind = place + int((~by_suffix[row, place:]).nonzero()[0])
            cause = f"The hidden state at {blind} does not depend on the token there: it is not connected."
            return expected.failed(f"{blind} of {length} does not depend on itself", cause, certain)
        if place and not by_prefix[row, place]:
            cause = (
                f"The hidden state at {place} is the same whatever is before it: the mask hides the past, or attention "
                "adds nothing."
            )
            return expected.failed(f"{place} of {length} depends on nothing before it", cause, certain)
    n_first = max(1, length // 8)
    pair = (subject.text_row, other_tokens(subject.text_row, 0, n_first, subject))
    reaches = bool(differing(*(_hidden(subject, tokens) for tokens in pair))[0, -1])
    if not reaches and n_first + _reach(subject) > length:
        cause = "Changing the beginning of the window changes nothing at its end: the mask hides what is far away."
        return expected.failed("the last token does not depend on the first ones", cause, certain)
    return expected.passed(f"holds at {len(places)} places, the first and the last of {length} among them")


def _reach(subject: Subject) -> int:
    """How many tokens a token attends to in the layer without a sliding window, or the one with the longest."""
    config = subject.model.config
    return max(config.window_of(layer) or subject.text_row.shape[1] for layer in range(config.n_layers))


def _dependence(subject: Subject) -> tuple[list[int], Tensor, Tensor]:
    """Places, and what changes, (places, T) bool, when the tokens from each of them on, or before it, are changed."""
    tokens = subject.text_row
    length = tokens.shape[1]
    places = list(range(length))
    if length > _SHORT:
        edges = [edge + side for edge in (128, 256) for side in (0, 1) if edge + side < length]
        places = sorted({0, *np.linspace(1, length - 1, _PLACES).astype(int).tolist(), *edges})
    base = _hidden(subject, tokens.expand(len(places), -1))
    suffix = torch.cat([other_tokens(tokens, place, length, subject) for place in places])
    prefix = torch.cat([other_tokens(tokens, 0, place, subject) for place in places])
    return places, differing(base, _hidden(subject, suffix)), differing(base, _hidden(subject, prefix))


def documents_apart(subject: Subject) -> Finding:
    """With `separate_documents` no token attends to another document; without it each attends to all before it."""
    apart, tokens = subject.config.text.separate_documents, subject.text_row
    expected = Expected("no attention" if apart else "attention goes on (no --separate-documents)")
    length = tokens.shape[1]
    if length < 4:
        return expected.passed("the window is too short to tell")
    middle = length // 2
    segment_ids = (torch.arange(length) >= middle).long()[None]
    pair = (_hidden(subject, one, segment_ids) for one in (tokens, other_tokens(tokens, 0, middle, subject)))
    changed = differing(*pair)[0, middle:]
    measured = f"{int(changed.sum())} of {len(changed)} places of the second document depend on the first"
    if apart and changed.any():
        cause = "The mask of the run lets a token attend to the document before its own, despite --separate-documents."
        return expected.failed(measured, cause)
    changed = changed[: _reach(subject) - 1]  # a sliding window may hide the first document from the rest
    if not apart and not changed.all():
        cause = "Attention stops at the beginning of a document, though --separate-documents is not given."
        return expected.failed(measured, cause, certain=not changed.any() and not subject.trained)
    return expected.passed(measured)


def padding_unseen(subject: Subject) -> Finding:
    """Padding changes nothing at real tokens: in the model's own mask, and in the batches of the run."""
    expected = Expected("padding changes nothing at real tokens")
    if where := _attended_padding(subject):
        return expected.failed(
            where,
            f"{where}, and the run has no mask for it: pad on the right, pack the text (the default), or give the "
            "model a mask for padding.",
        )
    model, tokens = _small(subject)
    length, n_padding = tokens.shape[1], max(1, tokens.shape[1] // 4)
    if length < 2:
        return expected.passed("a window of one token is never padded")
    for side, padded in (("left", slice(0, n_padding)), ("right", slice(length - n_padding, length))):
        real = torch.ones(1, length, dtype=torch.bool, device=tokens.device)
        real[:, padded] = False
        with torch.no_grad():
            filled = (tokens.where(real, id % model.config.vocab_size) for id in (3, 10))
            outputs = [model.hidden_states(one, real) for one in filled]
        if (differing(*outputs) & real).any():
            return expected.failed(
                f"attended to on the {side}",
                f"Padding on the {side} changes the hidden states of real tokens: the mask for padding "
                "(attention_mask_BT) is not applied.",
            )
    if type(model.config) is ModelConfig:  # the legacy model counts padding in its positions
        with torch.no_grad():
            alone = model.hidden_states(tokens[:, n_padding:])
            shifted = model.hidden_states(tokens, torch.arange(length, device=tokens.device)[None] >= n_padding)
        if not max_difference(shifted[:, n_padding:], alone) <= _CLOSE:
            return expected.failed(
                "padding changes the positions",
                "After padding on the left a text has other hidden states than without it: its positions count "
                "padding.",
            )
    share = float(subject.rows.padding.mean())
    return expected.passed(f"on the left and on the right; {share:.1%} of the inputs of the run are padding")


def cached(subject: Subject) -> Finding:
    """Decoding token by token with the cache gives what one pass over all tokens gives; also by the backend that serves
    the model."""
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
    return expected.failed(
        measured,
        "Generating with the key-value cache gives other logits than the forward pass that is trained: look at the "
        "positions and the mask of cached tokens.",
    )


# ---- what the checks share ----


def _small(subject: Subject) -> tuple[Transformer, Tensor]:
    """A small model of the same architecture in evaluation mode, and (1, T) tokens for it."""
    model = probe.small_model(subject.model, _VOCABULARY, _SHORT).to(subject.engine.device).eval()
    tokens = probe.batch_of(model.config, 1, model.config.context_length).inputs
    return model, tokens.to(subject.engine.device)


def _stepper(subject: Subject) -> Stepper:
    return subject.hidden_stepper()


def _hidden(subject: Subject, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """(B, T, D) hidden states, on the CPU, as a step of the run computes them: with gradients, in its precision.

    No more rows at once than a batch has, so that they fit. segment_ids: (1, T); None: each row is one document.
    """
    segment_ids = torch.zeros_like(tokens) if segment_ids is None else segment_ids.expand_as(tokens)
    stepper, found = subject.once(_stepper), []
    last_layer = stepper.model.layers[-1]
    rows = len(subject.batches[0].inputs)
    for part in zip(*(tensor.split(rows) for tensor in (tokens, torch.zeros_like(tokens), segment_ids)), strict=True):
        with torch.enable_grad(), recorded([("last layer", last_layer)]) as recording:
            stepper.nats(Batch(*part), stepper.module)
        found.append(recording["last layer"][1].float().cpu())
    return torch.cat(found)


def _attended_padding(subject: Subject) -> str:
    """Where real tokens attend to padding of the run's own batches; an empty string if nowhere."""
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
                n_left = int(rows.left_padding[row])
                side = f"{n_left} tokens of padding on the left" if n_left else "padding"
                share = float((rows.left_padding > 0).mean()) if n_left else float(rows.padding.any(axis=1).mean())
                return f"Real tokens attend to {side} of a {what} row ({share:.0%} of the rows have it)"
    return ""


def _hidden_with_other_padding(subject: Subject, tokens: Tensor, segment_ids: Tensor, padding: Tensor) -> Tensor:
    """Hidden states with other embeddings at padding (1, T), whose ids, by which it may be masked, are the same."""

    def change(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.where(~padding.to(output.device)[..., None], output.std())

    handle = subject.once(_stepper).model.token_embedding.register_forward_hook(change)
    try:
        return _hidden(subject, tokens, segment_ids)
    finally:
        handle.remove()
