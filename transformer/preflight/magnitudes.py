"""Checks of magnitudes before training: of the loss, the positions, and the outputs of sub-layers.

Dimensions: B batch · T window · D d_model · H heads
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import Transformer
from transformer.model.attention import MultiHeadAttention
from transformer.preflight import formulas
from transformer.preflight.check import Check, Expected
from transformer.preflight.measure import recorded
from transformer.preflight.subject import Subject, cut

_LOSS_ROWS, _LOSS_LENGTH = 4, 128
_LOSS_WARN, _LOSS_FAIL = 1.0, 3.0  # nats above ln(vocabulary)
_RATIO, _LOST = 5.0, 50.0  # of the norms of positions and tokens: to warn, and to fail
# How large the output of a sub-layer may be, relative to the residual stream, which in "pre" begins as small as the
# embeddings. Other placements normalise the output.
_LIMITS = {"post": 1.5, "pre": 8.0}
_GAIN = 1.5  # how large the output of attention may be if all heads agree, relative to the values of one head


def initial_loss(subject: Subject) -> Check:
    """A model with random weights has a loss of ln(vocabulary) nats per token.

    If the vocabulary projection is tied to the embedding, the logit of each position's own token starts high:
    a loss that is too high is measured again without it.
    """
    size = subject.model.config.vocab_size
    uniform = math.log(size)
    batch, model = cut(subject.fullest, _LOSS_ROWS, _LOSS_LENGTH), subject.copy_of_model(dropout=False)
    train_step = subject.make_train_step(model, batch)
    with torch.no_grad():
        loss = float(train_step.summed_loss(batch)) / batch.n_targets
    measured = f"{loss:.2f} nats per token"
    if subject.config.model.init_from or subject.config.model.start_from_bigrams:
        expected = Expected(f"below ln({size:,}) = {uniform:.2f}: the weights are trained")
        if loss < uniform:
            return expected.passed(measured)
        cause = "The trained model is worse than chance: its tokenizer is another, or its weights were not loaded."
        return expected.warned(measured, cause)
    expected = Expected(f"ln({size:,}) = {uniform:.2f} ± {_LOSS_WARN:.0f}")
    if abs(loss - uniform) <= _LOSS_WARN:
        return expected.passed(measured)
    if loss < uniform:
        cause = "A new model is better than chance: it sees its targets (see causality), or the text repeats tokens."
        return expected.warned(measured, cause)
    without_own = _loss_without_own_token(model, batch)
    if without_own <= uniform + _LOSS_WARN:
        return expected.passed(f"{measured}, {without_own:.2f} without each position's own token")
    cause = "The weights are drawn too large: a new model is sure of wrong tokens; look at the initialisation."
    return expected.failed(measured, cause, certain=without_own > uniform + _LOSS_FAIL)


def _loss_without_own_token(model: Transformer, batch: Batch) -> float:
    """Nats per token if the token of a position is neither a target there nor predicted."""
    inputs, targets = batch.inputs.to(model.device), batch.targets.to(model.device)
    with torch.no_grad():
        logits = model(inputs).float()
    logits.scatter_(2, inputs[..., None], -math.inf)
    targets = targets.where(targets != inputs, IGNORE_INDEX)
    if not bool((targets != IGNORE_INDEX).any()):
        return 0.0
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX))


def positions(subject: Subject) -> Check:
    """Token embeddings and the positions that are added to them have norms of a similar size."""
    expected = Expected(f"norms between 1 : {_RATIO:.0f} and {_RATIO:.0f} : 1")
    model = subject.copy_of_model(dropout=False)
    if model.position_embedding is None:
        return expected.passed(f"none are added ({subject.model.config.positions})")
    with torch.no_grad(), recorded([("positions", model.position_embedding)]) as recording:
        model.hidden_states(subject.text_row.to(subject.engine.device))
    tokens, embedded = (tensor.float() for tensor in recording["positions"])
    position, token = (float(vectors.norm(dim=-1).mean()) for vectors in (embedded - tokens, tokens))
    ratio, measured = position / max(token, 1e-12), f"{position:.3g} : {token:.3g}"
    if subject.trained:
        return Expected("for your information: these weights are trained").passed(measured)
    if 1 / _RATIO <= ratio <= _RATIO:
        return expected.passed(measured)
    small, large = ("tokens", "positions") if ratio > _RATIO else ("positions", "tokens")
    times = max(ratio, 1 / max(ratio, 1e-12))
    cause = f"The {large} are {times:.0f} times as large as the {small}: {small} have little effect; scale embeddings."
    return expected.failed(measured, cause, certain=ratio > _LOST)


def residual(subject: Subject) -> Check:
    """Outputs of attention and feed-forward are not much larger than the residual stream that they are added to.

    If all heads have the same values, the output of attention is about as large as one head's values, whether heads are
    concatenated and projected, or averaged; if they are summed, it is larger by the number of heads.
    """
    limit = _LIMITS.get(subject.model.config.norm_placement, math.inf)
    of_stream = f"less than {limit:.3g} of the stream; " if limit < math.inf else ""
    expected = Expected(f"{of_stream}of heads that agree no more than {_GAIN:.3g} times one's values")
    tokens = subject.text_row.to(subject.engine.device)
    shares, _ = _added(subject.copy_of_model(dropout=False), tokens)
    agreeing = subject.copy_of_model(dropout=False)
    attentions = [module for module in agreeing.modules() if isinstance(module, MultiHeadAttention)]
    for module in attentions:
        _give_all_heads_the_first_values(module)
    _, gains = _added(agreeing, tokens[:, :1])  # one token, so that nothing is averaged over the past
    spans = (f"{min(values):.2g} to {max(values):.2g}" for values in (*shares.values(), gains))
    measured = "attention {}, feed-forward {}; heads agreeing {}".format(*spans)
    if max(gains) > _GAIN and not all(hasattr(module, "output") for module in attentions):
        n_heads = subject.model.config.n_heads
        cause = f"Attention sums its {n_heads} heads without scaling: average them, or concatenate and project them."
        return expected.failed(measured, cause, certain=not subject.trained)
    if subject.trained:
        return Expected("for your information: these weights are trained").passed(measured)
    for kind, by_layer in shares.items():
        worst = int(np.argmax(np.nan_to_num(by_layer, nan=np.inf)))
        if not by_layer[worst] < limit:
            times = f"{by_layer[worst]:.3g} times the norm of the residual stream"
            cause = f"In layer {worst} {kind} adds {times}: draw its output projection smaller, or do not sum heads."
            return expected.warned(measured, cause)
    return expected.passed(measured)


def _added(model: Transformer, tokens: Tensor) -> tuple[dict[str, list[float]], list[float]]:
    """By kind of sub-layer, the norm of its output in each layer relative to the residual stream, as a mean over
    positions; and the root mean square of attention's output in each layer relative to that of its values."""
    modules = [(name, module) for name, module in model.named_modules() if name]
    with torch.no_grad(), recorded(modules) as recording:
        model.eval().hidden_states(tokens)
    shares: dict[str, list[float]] = {"attention": [], "feed-forward": []}
    gains = []
    for layer in (f"layers.{i}" for i in range(model.config.n_layers)):
        stream = recording[layer][0].float()
        for kind in shares:
            module = kind.replace("-", "_")
            after = formulas.NORMS[model.config.norm_placement][1].format(module)  # is what is added, or the sub-layer
            given, added = (tensor.float() for tensor in recording[f"{layer}.{after or module}"])
            if model.config.norm_placement == "post":  # a sub-layer is given the stream itself
                stream = given
            shares[kind].append(float((added.norm(dim=-1) / stream.norm(dim=-1).clamp(min=1e-12)).mean()))
            stream = stream + added
        values, attention = (recording[f"{layer}.{name}"][1].float() for name in ("attention.value", "attention"))
        gains.append(math.sqrt(float(attention.square().mean()) / max(float(values.square().mean()), 1e-24)))
    return shares, gains


@torch.no_grad()
def _give_all_heads_the_first_values(attention: MultiHeadAttention) -> None:
    """Makes all heads agree, so that the output of summed heads is as large as possible."""
    for parameter in attention.value.parameters():
        heads = parameter.unflatten(0, (attention.n_kv_heads, -1))
        heads.copy_(heads[:1].expand_as(heads).clone())
