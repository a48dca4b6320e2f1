"""Who looks at whom: the future, other documents and padding are not seen; the past is, through the cache too.

Everything goes through the loss, the precision, the mask and the kernel of the run, in training mode.

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
from transformer.preflight.check import Check, Verdict
from transformer.preflight.subject import Subject, other_tokens, recorded, without_dropout

_PLACES = 4  # of a long window, spread over it, before and behind which everything is changed
_SHORT = 32  # tokens of a window of which all places are tried
_VOCABULARY = 64  # of the small model that is padded and served
_NOISE = 1e-5  # of the size of the hidden states: the least change that is one
_CLOSE = 1e-3  # of that size: the same numbers, summed in another order


def causality(subject: Subject) -> Check:
    """Nothing before a token changes when the tokens from it on do; and what comes after does.

    The first is tried at the first, the last, and places between, on both sides of where kernels end their blocks; the
    second shows a mask that hides the past. Every place of a short window is tried. That weights which are trained
    leave something out is no mistake of the mask: of those only the first can fail.
    """
    name, expected = "causality", "a changed token changes nothing before it, and everything after"
    tokens = subject.text_row
    length = tokens.shape[1]
    look = _Look(subject, tokens)
    for row, place in enumerate(look.places):
        if look.by_suffix[row, :place].any():
            first = int(look.by_suffix[row, :place].nonzero()[0])
            cause = (
                f"The tokens from {place} on change what the model computes at {first}, before them: the causal "
                "mask or the attention kernel lets a token look ahead, so the loss is too good and no use."
            )
            return Check(name, f"{first} of {length} sees {place} or later", expected, "fail", cause)
    verdict: Verdict = "warn" if subject.trained else "fail"
    for row, place in enumerate(look.places):
        if not look.by_suffix[row, place:].all():
            blind = place + int((~look.by_suffix[row, place:]).nonzero()[0])
            cause = f"What the model computes at {blind} does not depend on the token there: it is not connected."
            return Check(name, f"{blind} of {length} does not see itself", expected, verdict, cause)
        if place and not look.by_prefix[row, place]:
            cause = (
                f"What the model computes at {place} is the same whatever stands before it: the mask hides the "
                "past, or attention adds nothing."
            )
            return Check(name, f"{place} of {length} sees nothing before it", expected, verdict, cause)
    if not look.first_reaches_last and _beginning(length) + _reach(subject, length) > length:
        cause = "Changing the beginning of the window changes nothing at its end: the mask hides what is far away."
        return Check(name, "the last token does not see the first ones", expected, verdict, cause)
    return Check(name, f"holds at {len(look.places)} places, the first and the last of {length} among them", expected)


def documents_apart(subject: Subject) -> Check:
    """With `separate_documents` nothing of a document is seen in the next; without it everything is."""
    name = "across documents"
    asked = subject.config.data.separate_documents
    expected = "nothing flows" if asked else "attention goes on (no --separate-documents)"
    tokens = subject.text_row
    length = tokens.shape[1]
    if length < 4:
        return Check(name, "the window is too short to say", expected)
    middle = length // 2
    document = (torch.arange(length) >= middle).long()[None]
    changed = _differs(subject, tokens, other_tokens(tokens, 0, middle, subject), document)[0, middle:]
    measured = f"{int(changed.sum())} of {len(changed)} places of the second document see the first"
    if asked and changed.any():
        cause = "The mask of the run lets a document look into the one before it, though --separate-documents is given."
        return Check(name, measured, expected, "fail", cause)
    changed = changed[: _reach(subject, length) - 1]  # what a sliding window keeps apart is no mistake
    if not asked and not changed.all():
        cause = "Attention stops at the document, though --separate-documents is not given."
        return Check(name, measured, expected, "fail" if not changed.any() and not subject.trained else "warn", cause)
    return Check(name, measured, expected)


def padding_unseen(subject: Subject) -> Check:
    """Padding changes nothing at real tokens: in the model's own rule, and in the batches of the run."""
    name, expected = "padding unseen", "what stands at padding changes nothing at real tokens"
    if where := _padding_seen_in_batches(subject):
        cause = (
            f"{where}, and the run has no mask for it: pad on the right, pack the text (the default), or give the "
            "model a mask for padding."
        )
        return Check(name, where, expected, "fail", cause)
    model, tokens = _small(subject)
    length, n_padding = tokens.shape[1], max(1, tokens.shape[1] // 4)
    if length < 2:
        return Check(name, "a window of one token is never padded", expected)
    for side in ("left", "right"):
        real = torch.ones(1, length, dtype=torch.bool, device=tokens.device)
        real[:, slice(0, n_padding) if side == "left" else slice(length - n_padding, length)] = False
        outputs = []
        for fill in (0, 1):
            padded = tokens.clone()
            padded[~real] = (fill * 7 + 3) % model.config.vocab_size
            with torch.no_grad():
                outputs.append(model.hidden_states(padded, real))
        if (_unlike(*outputs) & real).any():
            cause = (
                f"What stands at padding on the {side} changes what the model computes at real tokens: its mask for "
                "padding (attention_mask_BT) is not applied."
            )
            return Check(name, f"seen on the {side}", expected, "fail", cause)
    if type(model.config) is ModelConfig:  # the legacy model counts padding in its positions
        with torch.no_grad():
            alone = model.hidden_states(tokens[:, n_padding:])
            padded = model.hidden_states(tokens, torch.arange(length, device=tokens.device)[None] >= n_padding)
        if not _distance(padded[:, n_padding:], alone) <= _CLOSE:
            cause = (
                "After padding on the left a text has other hidden states than without it: its positions count padding."
            )
            return Check(name, "a padded text is another text", expected, "fail", cause)
    share = float(subject.rows.padding.mean())
    return Check(name, f"on the left and on the right; {share:.1%} of the inputs of the run are padding", expected)


def cached(subject: Subject) -> Check:
    """Decoding token by token with the cache gives what one pass over all tokens gives; as it is served too."""
    name, expected = "cached decoding", "the same as without a cache, to 1/1000"
    model, tokens = _small(subject)
    length, worst = tokens.shape[1], 0.0
    with torch.no_grad():
        whole = model.hidden_states(tokens)
        expected_logits = model.head(whole[0])
    for decoded, first in ((model, 0), (select_backend(model, "fp32"), max(1, length // 2))):
        cache = decoded.new_cache(1, length)
        decoded.prefill(tokens[0, :first].tolist(), cache, 0)
        with torch.no_grad():
            steps = torch.cat([decoded.decode(tokens[:, i], cache) for i in range(first, length)])
            worst = max(worst, _distance(steps, expected_logits[first:]))
    measured = f"{worst:.1e} apart, without a prompt and with one of {max(1, length // 2)} tokens"
    if worst <= _CLOSE:
        return Check(name, measured, expected)
    cause = (
        "What is generated with the key-value cache is not what the model was trained to say: look at the positions "
        "and the mask of cached tokens."
    )
    return Check(name, measured, expected, "fail", cause)


# ---- what the checks share ----


class _Look:
    """What changes where, when the tokens before or from some places of a window on are changed.

    by_suffix, by_prefix: (places, T) bool.
    """

    def __init__(self, subject: Subject, tokens: Tensor) -> None:
        length = tokens.shape[1]
        self.places = _places(length)
        base = _hidden(subject, tokens.expand(len(self.places), -1))
        suffix = torch.cat([other_tokens(tokens, place, length, subject) for place in self.places])
        prefix = torch.cat([other_tokens(tokens, 0, place, subject) for place in self.places])
        self.by_suffix = _unlike(base, _hidden(subject, suffix))
        self.by_prefix = _unlike(base, _hidden(subject, prefix))
        beginning = other_tokens(tokens, 0, _beginning(length), subject)
        self.first_reaches_last = bool(_differs(subject, tokens, beginning)[0, -1])


def _beginning(length: int) -> int:
    """How many tokens are the beginning of a window."""
    return max(1, length // 8)


def _reach(subject: Subject, length: int) -> int:
    """How many tokens a token sees in the layer that sees most, its own included."""
    config = subject.model.config
    return max(config.window_of(layer) or length for layer in range(config.n_layers))


def _places(length: int) -> list[int]:
    """All places of a short window; of a long one the ends and both sides of where kernels end their blocks."""
    if length <= _SHORT:
        return list(range(length))
    edges = [edge + side for edge in (128, 256) for side in (0, 1) if edge + side < length]
    spread = np.linspace(1, length - 1, _PLACES).astype(int).tolist()
    return sorted({0, *spread, *edges})


def _small(subject: Subject) -> tuple[Transformer, Tensor]:
    """A small model of the same architecture in evaluation mode, and (1, T) tokens for it."""
    model = probe.small_model(subject.model, _VOCABULARY, _SHORT).to(subject.engine.device).eval()
    tokens = probe.batch_of(model.config, 1, model.config.context_length).inputs
    return model, tokens.to(subject.engine.device)


def _differs(subject: Subject, base: Tensor, changed: Tensor, document: Tensor | None = None) -> Tensor:
    """(B, T) bool: where the run computes other hidden states for `changed` than for `base`.

    Both have the same shape, so that every number is summed in the same order.
    """
    return _unlike(*(_hidden(subject, tokens, document) for tokens in (base, changed)))


def _hidden(subject: Subject, tokens: Tensor, document: Tensor | None = None) -> Tensor:
    """(B, T, D) hidden states, on the CPU, as a step of the run computes them: with gradients, in its precision.

    Without dropout, and no more rows at once than a batch has, so that they fit. document: (1, T); None: the rows are
    one document.
    """
    document = torch.zeros_like(tokens) if document is None else document.expand_as(tokens)
    stepper, targets, found = subject.headless_stepper, torch.zeros_like(tokens), []
    parts = zip(*(tensor.split(len(subject.batches[0].inputs)) for tensor in (tokens, targets, document)), strict=True)
    for part in parts:
        with torch.enable_grad(), without_dropout(subject.headless), recorded(subject.headless) as outputs:
            stepper.nats(Batch(*part), stepper.module)
        found.append(outputs[0].float().cpu())
    return torch.cat(found)


def _unlike(left: Tensor, right: Tensor) -> Tensor:
    """(B, T) bool: where hidden states differ; numbers that are none are unlike all others."""
    return ~((left - right).abs().amax(dim=-1) <= _NOISE * float(left.std()))


def _distance(left: Tensor, right: Tensor) -> float:
    """The largest difference, by the size of the numbers."""
    return float((left - right).abs().max() / right.std().clamp(min=1e-12))


def _padding_seen_in_batches(subject: Subject) -> str:
    """Where padding of the run's own batches is looked at; nowhere: an empty string."""
    for what, rows, batches in (
        ("training", subject.rows, subject.batches),
        ("validation", subject.validation_rows, subject.validation_batches),
    ):
        chosen = np.flatnonzero(rows.padding.any(axis=1) & rows.real.any(axis=1))[:4]
        for row in chosen:
            batch = batches[rows.batch[row]]
            place = slice(rows.place[row], rows.place[row] + 1)
            one = Batch(batch.inputs[place], batch.targets[place], batch.segment_ids[place])
            padding = torch.from_numpy(rows.padding[row : row + 1, : one.inputs.shape[1]].copy())
            hidden = [_shaken_hidden(subject, one, padding, strength) for strength in (0.0, 1.0)]
            if (_unlike(*hidden) & ~padding).any():
                n_left = int(rows.left_padding[row])
                side = f"{n_left} places of padding on the left" if n_left else "padding"
                share = float((rows.left_padding > 0).mean()) if n_left else float(rows.padding.any(axis=1).mean())
                return f"Real tokens look at {side} of a {what} row ({share:.0%} of the rows have it)"
    return ""


def _shaken_hidden(subject: Subject, batch: Batch, padding: Tensor, strength: float) -> Tensor:
    with _shaken(subject.headless, padding, strength):
        return _hidden(subject, batch.inputs, batch.segment_ids)


class _shaken:
    """Within it the embeddings at some places (B, T) are others: another token is seen there, its id the same."""

    def __init__(self, model: Transformer, places: Tensor, strength: float) -> None:
        self.model, self.places, self.strength = model, places, strength

    def __enter__(self) -> None:
        self.hook = self.model.token_embedding.register_forward_hook(self._shake)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _shake(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        places = self.places.to(output.device)[..., None]
        return output.where(~places, output + self.strength * (output.std() - output))
