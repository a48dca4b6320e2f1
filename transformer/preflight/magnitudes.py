"""How large everything is before the model has learned anything: its loss, positions, and what each layer adds.

Dimensions: B batch · T window · D d_model · H heads
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import Transformer
from transformer.model.attention import MultiHeadAttention
from transformer.model.layers import DecoderLayer
from transformer.preflight.check import Check
from transformer.preflight.subject import Subject, cut

_LOSS_ROWS, _LOSS_LENGTH = 4, 128
_LOSS_WARN, _LOSS_FAIL = 1.0, 3.0  # nats from ln(vocabulary)
_LOST = 50.0  # times the norm of the tokens: they are lost in the positions
# Times the norm of the stream that may be added to it: in pre-norm models it begins as small as the embeddings. Other
# placements normalise what is added, which is of one size however the weights are drawn.
_LIMITS = {"post": 1.5, "pre": 8.0}
_GAIN = 1.5  # times the values of one head may be written when all agree


def initial_loss(subject: Subject) -> Check:
    """A model that knows nothing guesses: ln(vocabulary) nats per token.

    Measured by the run's own loss. How sure a new model is of what it cannot know is measured without the score of each
    place's own token, which a tied vocabulary projection favours from the start, however the rest is drawn.
    """
    name, size = "loss at the beginning", subject.model.config.vocab_size
    guess = math.log(size)
    batch = cut(subject.fullest, _LOSS_ROWS, _LOSS_LENGTH)
    model = subject.fresh(dropout=False)
    stepper = subject.stepper(model, batch)
    n_targets = int((batch.targets != IGNORE_INDEX).sum())
    with torch.no_grad():
        loss = float(stepper.nats(batch, stepper.module)) / max(1, n_targets)
    measured = f"{loss:.2f} nats per token"
    if not n_targets:
        return Check(name, "there are no targets", f"ln({size:,}) = {guess:.2f}")
    if subject.config.model.init_from or subject.config.model.start_from_bigrams:
        expected = f"below ln({size:,}) = {guess:.2f}: it begins with what it knows"
        if loss < guess:
            return Check(name, measured, expected)
        cause = (
            "The model begins worse than guessing although it is not new: its tokenizer is not the one of this text's "
            "tokens, or its weights were not loaded."
        )
        return Check(name, measured, expected, "warn", cause)
    expected = f"ln({size:,}) = {guess:.2f} ± {_LOSS_WARN:.0f}"
    if abs(loss - guess) <= _LOSS_WARN:
        return Check(name, measured, expected)
    if loss < guess:
        cause = (
            "A new model is better than guessing: it sees what it is to predict, or the text repeats its tokens so "
            "that they are their own targets."
        )
        return Check(name, measured, expected, "warn", cause)
    unsure = _loss_without_own_token(model, batch)
    if unsure <= guess + _LOSS_WARN:
        return Check(name, f"{measured}, {unsure:.2f} without each place's own token", expected)
    cause = "The weights are drawn too large, so the model is sure of what it cannot know: look at the initialisation."
    return Check(name, measured, expected, "fail" if unsure > guess + _LOSS_FAIL else "warn", cause)


def _loss_without_own_token(model: Transformer, batch: Batch) -> float:
    """Nats per token where the token of a place is not its own target and cannot be chosen."""
    inputs, targets = batch.inputs.to(model.device), batch.targets.to(model.device)
    with torch.no_grad():
        logits = model(inputs).float()
    logits.scatter_(2, inputs[..., None], -math.inf)
    targets = targets.where(targets != inputs, IGNORE_INDEX)
    if not bool((targets != IGNORE_INDEX).any()):
        return 0.0
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX))


def positions(subject: Subject) -> Check:
    """Token embeddings and positions that are added have sizes that let both be seen."""
    name, low, high = "positions : tokens", 1 / 5, 5.0
    expected = f"norms between 1 : {1 / low:.0f} and {high:.0f} : 1"
    model = subject.fresh(dropout=False)
    module = model.position_embedding
    if module is None:
        return Check(name, f"none are added ({subject.model.config.positions})", expected)
    sizes: list[tuple[float, float]] = []

    def measure(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before = inputs[0].float()
        added = output.float() - before
        sizes.append((float(added.norm(dim=-1).mean()), float(before.norm(dim=-1).mean())))

    module.register_forward_hook(measure)
    with torch.no_grad():
        model.hidden_states(subject.text_row.to(subject.engine.device))
    position, token = sizes[0]
    ratio = position / max(token, 1e-12)
    measured = f"{position:.3g} : {token:.3g}"
    if subject.trained:
        return Check(name, measured, "for your information: these weights are trained")
    if low <= ratio <= high:
        return Check(name, measured, expected)
    drowned, by = ("tokens", "positions") if ratio > high else ("positions", "tokens")
    cause = (
        f"The {drowned} drown in the {by}, whose vectors are {max(ratio, 1 / max(ratio, 1e-12)):.0f} times as large: "
        "scale the embeddings (scale_embeddings, or their initialisation)."
    )
    return Check(name, measured, expected, "fail" if ratio > _LOST else "warn", cause)


def residual(subject: Subject) -> Check:
    """What attention and feed-forward add is not so large that the stream drowns in it.

    Two measures: on the text of the run, the norm of what each sub-layer adds, by the norm of the stream it is added
    to; and how much larger attention's output is than the values of one head, in root mean squares, if all heads
    agree, which they may come to do. That is about 1 where heads are concatenated and projected or averaged, and their
    number where they are summed. (What a trained projection makes of it is its own.)
    """
    name = "share of the residual"
    limit = _LIMITS.get(subject.model.config.norm_placement, math.inf)
    expected = f"heads that agree write no more than {_GAIN:.3g} times one's values"
    if limit < math.inf:
        expected = f"less than {limit:.3g} of the stream; {expected}"
    tokens = subject.text_row
    natural, _ = _added(subject.fresh(dropout=False), tokens, subject)
    agreeing = subject.fresh(dropout=False)
    for module in agreeing.modules():
        if isinstance(module, MultiHeadAttention):
            _agree(module)
    _, gains = _added(agreeing, tokens[:, :1], subject)  # one token, so that nothing is averaged over the past
    attention, forward = ([one[kind] for one in natural] for kind in ("attention", "feed_forward"))
    measured = f"attention {_span(attention)}, feed-forward {_span(forward)}; heads agreeing {_span(gains)}"
    heads = subject.model.config.n_heads
    projects = all(hasattr(module, "output") for module in agreeing.modules() if isinstance(module, MultiHeadAttention))
    if max(gains) > _GAIN and not projects:
        cause = (
            f"Attention adds up its {heads} heads without scaling: when they agree it writes {max(gains):.3g} times "
            "what one says, and the stream drowns in it; average the heads, or concatenate and project them."
        )
        return Check(name, measured, expected, "warn" if subject.trained else "fail", cause)
    if subject.trained:
        return Check(name, measured, "for your information: what trained weights add is their own")
    for kind, shares in (("attention", attention), ("feed-forward", forward)):
        worst = int(np.argmax(np.nan_to_num(shares, nan=np.inf)))
        if not shares[worst] < limit:
            cause = (
                f"In layer {worst} {kind} adds {shares[worst]:.3g} times the norm of the stream, in which the tokens "
                "drown: scale down what is written (average or concatenate heads instead of summing them)."
            )
            return Check(name, measured, expected, "warn", cause)
    return Check(name, measured, expected)


def _added(model: Transformer, tokens: Tensor, subject: Subject) -> tuple[list[dict[str, float]], list[float]]:
    """For each layer the norm of what its sub-layers add by that of the stream before, a mean over places; and the root
    mean square of attention's output by that of its values."""
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer)]
    shares: list[dict[str, float]] = [{} for _ in layers]
    gains, values, streams = [0.0] * len(layers), {}, {}
    is_post = model.config.norm_placement == "post"

    def before(number: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        streams[number] = inputs[0].float()

    def value(number: int, _: nn.Module, inputs: Any, output: Tensor) -> None:
        values[number] = float(output.float().square().mean())

    def after(number: int, kind: str, _: nn.Module, inputs: Any, output: Tensor) -> None:
        # A layer that normalises after the sum gives its sub-layer the stream itself.
        stream, added = inputs[0].float() if is_post else streams[number], output.float()
        shares[number][kind] = float((added.norm(dim=-1) / stream.norm(dim=-1).clamp(min=1e-12)).mean())
        streams[number] = stream + added

    def gain(number: int, _: nn.Module, inputs: Any, output: Tensor) -> None:
        gains[number] = math.sqrt(float(output.float().square().mean()) / max(values[number], 1e-24))

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(before, number))
        layer.attention.value.register_forward_hook(partial(value, number))
        layer.attention.register_forward_hook(partial(gain, number))
        for kind, writer in _writers(layer).items():
            writer.register_forward_hook(partial(after, number, kind))
    with torch.no_grad():
        model.eval().hidden_states(tokens.to(subject.engine.device))
    return shares, gains


def _writers(layer: DecoderLayer) -> dict[str, nn.Module]:
    """The modules whose outputs are added to the stream."""
    if layer.norm_placement == "reordered":
        return {"attention": layer.attention_norm, "feed_forward": layer.feed_forward_norm}
    if layer.norm_placement == "sandwich":
        return {"attention": layer.attention_output_norm, "feed_forward": layer.feed_forward_output_norm}
    return {"attention": layer.attention, "feed_forward": layer.feed_forward}


@torch.no_grad()
def _agree(attention: MultiHeadAttention) -> None:
    """Give every head the values of the first: what they write is then as large as it can become."""
    for parameter in attention.value.parameters():
        heads = parameter.unflatten(0, (attention.n_kv_heads, -1))
        heads.copy_(heads[:1].expand_as(heads).clone())


def _span(values: list[float]) -> str:
    return f"{min(values):.2g} to {max(values):.2g}"
